"""The platform behind an AESM socket: Intel's aesmd, this project's quote helper, or another that speaks AESM."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from confcom.errors import (
    FormatError,
    KeyNotInitialized,
    NativeError,
    PlatformBusy,
    PlatformUnavailable,
    RemoteProtocolError,
)
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.interface import InitializedQuote, QuoteResult, without_padding
from confcom.protocols import aesm as m
from confcom.protocols.aesm import MAX_RESPONSE, NEED_DATA, ClientConnection, DcapRequest, Response, exchange_of
from confcom.protocols.aesm_status import AesmStatus, error_of

DEFAULT_SOCKET = Path("/var/run/aesmd/aesm.socket")
PUB_KEY_ID_SIZE = 32

_READ_SIZE = 64 * 1024
_Answer = TypeVar("_Answer", bound=Response)


class AesmPlatform:
    """A `Platform` that asks an AESM service, with a new connection for every request, as the protocol wants it.

    `timeout` is for one request, in seconds, from connecting to the whole answer; Intel's own client waits 15.
    The protocol does not show whether the platform behind it is a simulated one: `simulated` does.
    """

    name = "aesm"

    def __init__(
        self,
        socket_path: Path = DEFAULT_SOCKET,
        timeout: float = 15.0,
        *,
        simulated: bool,
        max_response: int = MAX_RESPONSE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self.simulated = simulated
        self._max_response = max_response
        self._monotonic = monotonic

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """The ids that the service lists."""
        count = self._ask(m.GetSupportedAttKeyIdNumRequest(), m.GetSupportedAttKeyIdNumResponse).att_key_id_num or 0
        size = AttestationKeyId.size()
        request = m.GetSupportedAttKeyIdsRequest(buf_size=min(count, self._max_response // size) * size)
        listed = self._ask(request, m.GetSupportedAttKeyIdsResponse).att_key_ids or b""
        try:
            return tuple(AttestationKeyId.parse(listed[at : at + size]) for at in range(0, len(listed), size))
        except FormatError as error:
            raise self._nonsense(error) from error

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Have the attestation key made. Sends the one request that does it, not the one that asks for a size."""
        request = m.InitQuoteExRequest(b_pub_key_id=True, att_key_id=_wire(key_id), buf_size=PUB_KEY_ID_SIZE)
        response = self._ask(request, m.InitQuoteExResponse)
        try:
            target_info = TargetInfo.parse(response.target_info or b"")
        except FormatError as error:
            raise self._nonsense(error) from error
        return InitializedQuote(target_info, response.pub_key_id or b"")

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size in bytes of the next quote."""
        return self._ask(m.GetQuoteSizeExRequest(att_key_id=_wire(key_id)), m.GetQuoteSizeExResponse).quote_size or 0

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Get a quote, without padding.

        On `KeyNotInitialized` (the service restarted, or its TCB changed) the key has been made again when this
        raises: the caller makes its report for the new target info and asks again.
        """
        try:
            request = m.GetQuoteExRequest(
                report=bytes(report),
                buf_size=self.quote_size(key_id),
                att_key_id=_wire(key_id),
                qe_report_info=bytes(qe_report_info) if qe_report_info is not None else None,
            )
            response = self._ask(request, m.GetQuoteExResponse)
        except KeyNotInitialized:
            self.init_quote(key_id)
            raise
        try:
            info = QeReportInfo.parse(response.qe_report_info or b"") if qe_report_info is not None else None
            return QuoteResult(without_padding(response.quote or b""), info)
        except FormatError as error:
            raise self._nonsense(error) from error

    def _ask(self, request: DcapRequest, kind: type[_Answer]) -> _Answer:
        connection = ClientConnection(self._max_response)
        frame = connection.send(request)
        name = exchange_of(request).name
        try:
            with self._connect() as client:
                response = self._converse(client, connection, frame)
        except TimeoutError as error:
            raise PlatformUnavailable(
                f"{self.socket_path} did not answer {name} within {self.timeout:g} s", retryable=True
            ) from error
        except OSError as error:
            raise PlatformUnavailable(
                f"{self.socket_path} broke off during {name}: {error.strerror}", retryable=True
            ) from error
        except RemoteProtocolError as error:
            raise self._nonsense(error) from error
        if response.status != AesmStatus.SUCCESS:
            raise error_of(response.status, name)
        if not isinstance(response, kind):  # pragma: no cover - the connection has checked it
            raise NativeError(f"{type(response).__name__} does not answer {name}")
        return response

    def _converse(self, client: socket.socket, connection: ClientConnection, frame: bytes) -> Response:
        deadline = self._monotonic() + self.timeout
        client.sendall(frame)
        while (event := connection.next_event()) is NEED_DATA:
            remaining = deadline - self._monotonic()
            if remaining <= 0:
                raise TimeoutError
            client.settimeout(remaining)
            connection.receive_data(client.recv(_READ_SIZE))
        return event

    def _connect(self) -> socket.socket:
        try:
            return connect(self.socket_path, self.timeout)
        except OSError as error:
            raise _cannot_connect(self.socket_path, error) from error

    def _nonsense(self, error: Exception) -> NativeError:
        return NativeError(
            f"{self.socket_path} does not answer as an AESM service does: {error}",
            advice="Check which program listens on this socket, and its log.",
        )


def connect(path: Path, timeout: float) -> socket.socket:
    """A connection to a Unix socket, which waits its turn while the backlog is full."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout of Python's, a full backlog would be an error at once; the kernel's own waits.
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        )
        client.connect(os.fspath(path))
    except OSError:
        client.close()
        raise
    client.settimeout(timeout)
    return client


def _wire(key_id: AttestationKeyId | None) -> bytes:
    return bytes(key_id or ECDSA_P256_KEY_ID)


def _cannot_connect(path: Path, error: OSError) -> PlatformUnavailable | PlatformBusy:
    """The error of a connection: what is at the socket's path, and what to do."""
    if error.errno == errno.EAGAIN:
        return PlatformBusy(f"the service at {path} has too many connections waiting")
    if error.errno == errno.ENOENT:
        there = "there is nothing" if path.parent.is_dir() else f"there is no directory {path.parent}"
        advice = "Start the quote helper on this node; in a pod, ask for it (confcom.dev/quote-mode: out-of-proc)."
    elif error.errno in (errno.EACCES, errno.EPERM):
        there = "permission is denied"
        advice = "Connecting takes write permission on the socket and search permission on its directories."
    elif not _is_socket(path):
        there = "it is not a socket"
        advice = "Name the socket of the service."
    elif error.errno == errno.ECONNREFUSED:
        there = "no process listens on it any more"
        advice = (
            "Start the quote helper. If it runs already, the container has mounted the socket itself: "
            "mount its directory instead, because a restart makes a new socket."
        )
    else:
        there, advice = str(error.strerror or error), "Check the path."
    return PlatformUnavailable(f"no AESM service at {path}: {there}", native_code=error.errno, advice=advice)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return True
