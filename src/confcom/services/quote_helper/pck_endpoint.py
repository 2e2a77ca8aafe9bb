"""PCK certificates for Intel's libraries in this helper's worker, from memory over loopback.

Intel's library holds one lock over all its quotes while its quote provider asks for the platform's PCK certificate, so
a collateral service that is down or slow stops every quote. Here the provider asks this process instead: its
configuration names `http://127.0.0.1:PORT/SECRET/` as `local_pck_url`, which is asked first, and as `pccs_url`. An
answer that is known is given at once and refreshed behind it, from the services that the operator's configuration
names, with the operator's parameters and headers. The port is chosen at start and the path is secret, because outside
of a pod every local process can connect.

The provider's requests tell the platform's identity: QE_ID, PCE-ID, CPUSVN, PCESVN, and once the encrypted PPID. What
was answered is kept in a file for the next helper, without the PPID. Sources: fleet.md §2, aesm-protocol.md §12.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
import structlog

from confcom.collateral.pck_rules import require_same_platform
from confcom.collateral.pcs_client import MAX_PCK_CERTIFICATE, HttpExchange, HttpLimits
from confcom.errors import CollateralError, CollateralUnavailable, ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import parse_http_url
from confcom.formats.qcnl import MAX_QCNL, QcnlFile
from confcom.input_file import read_bounded
from confcom.pki.certificate import parse_certificates
from confcom.pki.chain import TrustRoot, TrustRoots, verify_chain
from confcom.protocols.pcs import ENCRYPTED_PPID_SIZE, HttpRequest, HttpResponse, PckCertificateAnswer, PckCertRequest
from confcom.protocols.pcs_service import (
    ServedRequest,
    parse_pck_certificate,
    parse_request,
    pck_certificate_response,
    status_error,
)
from confcom.services.quote_helper.self_test import KeptFile

CONFIG_VARIABLE = "QCNL_CONF_PATH"
DEFAULT_CONFIG = "/etc/sgx_default_qcnl.conf"
REFRESH = 3600.0
"""Seconds after which a certificate is asked for again; a TCB recovery brings a better one for the same raw TCB."""
RETRY = 60.0
"""Seconds after a failure until the services are asked again, while there is an answer in memory."""
RETRY_UNKNOWN = 2.0
"""The same while there is none: the failure is told at once meanwhile."""
PATIENCE = 4.0
"""Seconds that the library waits for its first answer; its worker is taken for hung after 6."""
LIMITS = HttpLimits(timeout=5.0, deadline=10.0, retries=0)
"""For one service. Nothing waits for it but the first answer."""
MAX_PLATFORMS = 16
"""Raw TCBs that are remembered; a machine has one at a time."""
MAX_KEPT = 256 * 1024
"""Bytes of the file."""
MAX_HEAD = 8 * 1024
"""Bytes of a request with its headers; the library's has about 1,100."""
HEAD_TIMEOUT = 5.0
"""Seconds from a connection to its request, and again for the answer to be taken."""
MAX_CONNECTIONS = 32
"""Connections without a request; beyond it the oldest ends."""
NETWORK_ERROR, NONSENSE = 403, 502
"""What the provider passes on as SGX_QL_NETWORK_ERROR and UNKNOWN_MESSAGE_RESPONSE. After 503 it waits and retries."""

STEP = "pck-certificate"
_NAMES = ("qeid", "encrypted_ppid", "cpusvn", "pcesvn", "pceid")
_NO_PPID = bytes(ENCRYPTED_PPID_SIZE)
_SYSTEM_CAS = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)
"""Where distributions keep what libcurl, and so the provider, trusts."""
_EVENT = "pck.endpoint"

Fetch = Callable[[PckCertRequest, PckCertificateAnswer | None], PckCertificateAnswer]
"""Asks for a certificate; the second argument is the one that is known already."""


class UpstreamRefusal(CollateralUnavailable):
    """No service gave the certificate; `status` is what the library is told."""

    def __init__(self, error: ConfcomError, status: int) -> None:
        super().__init__(error.message, advice=error.advice())
        self.status = status


@dataclass(frozen=True, slots=True)
class ProviderServices:
    """The services that the operator's configuration names, in the order in which they are asked, and how."""

    urls: tuple[str, ...]
    verify_tls: bool
    parameters: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, file: QcnlFile) -> ProviderServices:
        """The services of a configuration; there may be none."""
        urls = (file.value("local_pck_url"), file.value("pccs_url"))
        options = (file.value("custom_request_options") or {}).get("get_cert")
        options = options if isinstance(options, dict) else {}
        return cls(
            tuple(url for url in urls if url and _is_http(url)),
            file.value("use_secure_cert") is not False,
            _texts(options.get("params")),
            _texts(options.get("headers")),
        )

    def fetch(self, request: PckCertRequest, known: PckCertificateAnswer | None = None) -> PckCertificateAnswer:
        """The certificate from the first service that gives a right one; `UpstreamRefusal` with the last's reason."""
        refusal = UpstreamRefusal(CollateralUnavailable("no service is configured"), NETWORK_ERROR)
        for url in self.urls:
            try:
                return check_certificate(request, self._ask(url, request), known)
            except UpstreamRefusal as error:
                refusal = error
            except ConfcomError as error:
                refusal = UpstreamRefusal(error, NETWORK_ERROR if isinstance(error, CollateralError) else NONSENSE)
        raise refusal

    def _ask(self, url: str, request: PckCertRequest) -> PckCertificateAnswer:
        # As the library writes it: hexadecimal digits in capitals, and zeros for no PPID.
        values = (
            request.qe_id or b"",
            request.encrypted_ppid or _NO_PPID,
            request.cpu_svn,
            request.pce_svn.to_bytes(2, "little"),
            request.pce_id,
        )
        query = [(name, value.hex().upper()) for name, value in zip(_NAMES, values, strict=True)]
        target = f"{url}pckcert?{urlencode([*query, *self.parameters])}"
        # One for each question, so that a renewed file of authorities counts.
        exchange = HttpExchange(service=url, verify_tls=self._trusted(), limits=LIMITS, proxy=_proxy(url))
        http = HttpRequest("", url=target, headers=self.headers)
        response = exchange.ask_once(request, http, MAX_PCK_CERTIFICATE)
        if response.status != 200:
            told = response.status if response.status in (404, 461, 462) else NETWORK_ERROR
            raise UpstreamRefusal(status_error(request, response, service=url), told)
        return parse_pck_certificate(response)

    def _trusted(self) -> bool | Path:
        if not self.verify_tls:
            return False
        return next((file for file in _SYSTEM_CAS if file.exists()), True)


def check_certificate(
    request: PckCertRequest, answer: PckCertificateAnswer, known: PckCertificateAnswer | None
) -> PckCertificateAnswer:
    """The answer with TCBm, FMSPC and CA of the certificate itself, if it can be this platform's.

    It is a sound chain, for this PCE, at a PCESVN that the platform has, and of the processor and root that an earlier
    answer was for. Whether its root is to be trusted is for verifiers to say. Anything else is a `ConfcomError`.
    """
    leaf = parse_certificates(answer.certificate, structure="PCK certificate", limit=1)
    issuers = parse_certificates(answer.issuer_chain, structure="PCK certificate issuer chain")
    pem = ssl.DER_cert_to_PEM_cert(issuers[-1]).encode()
    chain = verify_chain([*leaf, *issuers], roots=TrustRoots((TrustRoot.from_pem(pem),)), kind="pck", step=STEP)
    extension = chain.extension
    if extension.pce_id != request.pce_id or extension.tcb.pce_svn > request.pce_svn:
        raise FormatError("is of another PCE than this platform's", structure="PCK certificate", field="pce_id")
    if known is not None:
        require_same_platform(known, answer, roots=TrustRoots((chain.root,)))
    tcbm = extension.tcb.cpu_svn + extension.tcb.pce_svn.to_bytes(2, "little")
    # The library loses what follows the last percent sign of a chain that does not end with a line end.
    issuer_chain = answer.issuer_chain.rstrip(b"\r\n\0") + b"\n"
    return PckCertificateAnswer(answer.certificate, issuer_chain, tcbm, extension.fmspc, chain.ca)


@dataclass(slots=True)
class _Known:
    """What is known of one raw TCB. Times are of the monotonic clock."""

    answer: PckCertificateAnswer | None = None
    fresh_until: float = 0.0
    retry_at: float = 0.0
    status: int = NETWORK_ERROR
    under_way: asyncio.Future[None] | None = None
    patience_until: float = 0.0
    reason: str = ""
    met: bool = False


class PckMemory:
    """The certificates of this machine, refreshed behind the answers. To be used from one event loop."""

    def __init__(
        self, fetch: Fetch, file: KeptFile | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._file = file
        self._monotonic = monotonic
        self._ppids: dict[bytes | None, bytes] = {}
        self._known: OrderedDict[PckCertRequest, _Known] = OrderedDict()
        for request, answer in _parse_kept(None if file is None else file.read(), file):
            self._known[request] = _Known(answer)

    async def answer(self, served: ServedRequest, request: PckCertRequest) -> HttpResponse:
        """The certificate from memory, or what the services say within a few seconds."""
        known = self._learn(request)
        now = self._monotonic()
        if known.under_way is None and now >= max(known.fresh_until, known.retry_at):
            self._refresh(_without_ppid(request), known)
        if known.answer is None and known.under_way is not None:
            # Not from now: the library asks twice, and its whole call must be over in time.
            await asyncio.wait([known.under_way], timeout=max(0.0, known.patience_until - now))
        if known.answer is None:
            return HttpResponse(known.status if known.under_way is None else NETWORK_ERROR)
        return pck_certificate_response(served, known.answer, request_id="local", max_age=0)

    def _learn(self, request: PckCertRequest) -> _Known:
        if request.encrypted_ppid not in (None, _NO_PPID):
            self._ppids = {request.qe_id: request.encrypted_ppid or b""}
        key = _without_ppid(request)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known()
            if len(self._known) > MAX_PLATFORMS:
                self._known.popitem(last=False)
        if not known.met:
            known.met = True
            identity = {"qe_id": (key.qe_id or b"").hex(), "cpu_svn": key.cpu_svn.hex(), "pce_svn": key.pce_svn}
            structlog.get_logger().info("platform.identity", **identity, pce_id=key.pce_id.hex())
        return known

    def _refresh(self, key: PckCertRequest, known: _Known) -> None:
        """Ask in a thread of its own, which does not keep the process from ending."""
        loop = asyncio.get_running_loop()
        known.under_way = loop.create_future()
        known.patience_until = self._monotonic() + PATIENCE
        request = replace(key, encrypted_ppid=self._ppids.get(key.qe_id))

        def ask() -> None:
            outcome: PckCertificateAnswer | ConfcomError
            try:
                outcome = self._fetch(request, known.answer)
            except ConfcomError as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the library waiting
                outcome = CollateralUnavailable(f"{type(error).__name__}: {error}")
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._settle, known, outcome)

        try:
            threading.Thread(target=ask, name="pck-refresh", daemon=True).start()
        except RuntimeError as error:  # the machine has no room for a thread
            self._settle(known, UpstreamRefusal(CollateralUnavailable(f"nothing was asked: {error}"), NETWORK_ERROR))

    def _settle(self, known: _Known, outcome: PckCertificateAnswer | ConfcomError) -> None:
        logger, now = structlog.get_logger(), self._monotonic()
        if isinstance(outcome, PckCertificateAnswer):
            if known.reason or known.answer != outcome:
                logger.info(_EVENT, outcome="fetched", tcbm=outcome.tcbm.hex(), fmspc=(outcome.fmspc or b"").hex())
            known.answer, known.fresh_until, known.reason = outcome, now + REFRESH, ""
            self._keep()
        else:
            known.status = outcome.status if isinstance(outcome, UpstreamRefusal) else NONSENSE
            known.retry_at = now + (RETRY_UNKNOWN if known.answer is None else RETRY)
            if outcome.message != known.reason:
                serves = "nothing" if known.answer is None else "the certificate in memory"
                logger.warning(_EVENT, outcome="not fetched", reason=outcome.message, serves=serves)
            known.reason = outcome.message
        done, known.under_way = known.under_way, None
        if done is not None and not done.done():
            done.set_result(None)

    def _keep(self) -> None:
        if self._file is not None:
            found = [_Kept.of(key, known.answer) for key, known in self._known.items() if known.answer is not None]
            self._file.keep(msgspec.json.encode(found))


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate in the file."""

    qe_id: bytes
    pce_id: bytes
    cpu_svn: bytes
    pce_svn: int
    certificate: str
    issuer_chain: str

    @classmethod
    def of(cls, key: PckCertRequest, answer: PckCertificateAnswer) -> _Kept:
        return cls(
            key.qe_id or b"",
            key.pce_id,
            key.cpu_svn,
            key.pce_svn,
            answer.certificate.decode(),
            answer.issuer_chain.decode(),
        )


_KEPT = msgspec.json.Decoder(list[_Kept])


def _parse_kept(data: bytes | None, file: KeptFile | None) -> list[tuple[PckCertRequest, PckCertificateAnswer]]:
    """What the file holds, checked like an answer; a file that is damaged counts as none."""
    found = []
    try:
        for kept in _KEPT.decode(data or b"[]")[-MAX_PLATFORMS:]:
            request = PckCertRequest(kept.cpu_svn, kept.pce_svn, kept.pce_id, kept.qe_id)
            answer = PckCertificateAnswer(kept.certificate.encode(), kept.issuer_chain.encode(), b"")
            found.append((request, check_certificate(request, answer, None)))
    except (ConfcomError, msgspec.MsgspecError, ValueError) as error:
        if file is not None:
            file.ignore(str(error))
        return []
    return found


class PckEndpoint:
    """The HTTP server, in a thread and an event loop of its own, and what a worker needs to ask it.

    A worker gets `environment` beside its own, and inherits `descriptors`: the configuration is a file without a name.
    """

    def __init__(self, file: QcnlFile, memory: Path | None = None) -> None:
        kept = None if memory is None else KeptFile(memory, "pck.memory", limit=MAX_KEPT)
        self._memory = PckMemory(ProviderServices.of(file).fetch, kept)
        self._secret = secrets.token_urlsafe(24)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/{self._secret}/"
        # In memory: it holds the secret, and nothing is left of it when this process is killed.
        self._config = os.memfd_create("sgx_default_qcnl.conf", os.MFD_CLOEXEC)
        os.write(self._config, _derived(file, self.url))
        self.descriptors = (self._config,)
        self.environment = {CONFIG_VARIABLE: f"/proc/self/fd/{self._config}", **_no_proxy(os.environ)}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._waiting: OrderedDict[_Connection, None] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="pck-endpoint", daemon=True)
        self._thread.start()

    @classmethod
    def of_host(cls, environ: Mapping[str, str], memory: Path | None = None) -> PckEndpoint | None:
        """The endpoint in front of the services of this host's configuration; None, with a line in the log, if none."""
        path = environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG
        try:
            file = QcnlFile.parse(read_bounded(path, MAX_QCNL))
            if file.value("local_cache_only"):
                reason = "local_cache_only is set"
            elif not ProviderServices.of(file).urls:
                reason = "it names no pccs_url"
            else:
                return cls(file, memory)
        except FormatError as error:
            reason = error.message
        except OSError as error:
            reason = error.strerror or str(error)
        structlog.get_logger().warning(_EVENT, outcome="off", file=path, reason=reason)
        return None

    def close(self) -> None:
        """Stop; a worker that asks later is refused."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        self._socket.close()
        os.close(self._config)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await self._loop.create_server(partial(_Connection, self), sock=self._socket)
        await self._stop.wait()
        server.close()

    def begin(self, connection: _Connection) -> None:
        """A connection is there; the one that waits for longest makes room."""
        self._waiting[connection] = None
        if len(self._waiting) > MAX_CONNECTIONS:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.abort()

    def end(self, connection: _Connection) -> None:
        """It has sent its request, or gone."""
        self._waiting.pop(connection, None)

    async def answer(self, head: bytes) -> HttpResponse:
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or line[0] != b"GET" or not line[2].startswith(b"HTTP/1."):
            return HttpResponse(400)
        path, _, query = line[1].partition(b"?")
        if not hmac.compare_digest(path, f"/{self._secret}/pckcert".encode()):
            return HttpResponse(404)
        try:
            fields = parse_qsl(query.decode("latin-1"), max_num_fields=32)
            served = parse_request("/sgx/certification/v4/pckcert", dict(fields))
        except ValueError:
            return HttpResponse(400)
        if served is None or not isinstance(served.request, PckCertRequest):
            return HttpResponse(404)
        return await self._memory.answer(served, served.request)


class _Connection(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, endpoint: PckEndpoint) -> None:
        self._endpoint = endpoint
        self._head = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream server
        self._transport = transport
        self._endpoint.begin(self)
        self._deadline = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._endpoint.end(self)
            self._set_deadline(None)
            self._task = asyncio.get_running_loop().create_task(self._answer(bytes(self._head)))
        elif len(self._head) > MAX_HEAD:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._endpoint.end(self)
        self._set_deadline(None)
        self._transport = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, head: bytes) -> None:
        try:
            response = await self._endpoint.answer(head)
        except Exception:  # noqa: BLE001 - a mistake of ours must not leave the library waiting
            structlog.get_logger().exception(_EVENT, outcome="failed")
            response = HttpResponse(500)
        if self._transport is not None:
            self._set_deadline(HEAD_TIMEOUT)
            self._transport.write(_encode(response))
            self._transport.close()

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.abort)


def _encode(response: HttpResponse) -> bytes:
    headers = [*response.headers, ("Content-Length", str(len(response.body))), ("Connection", "close")]
    lines = [f"HTTP/1.1 {response.status} {'OK' if response.status == 200 else 'Refused'}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + response.body


def _derived(file: QcnlFile, url: str) -> bytes:
    """The operator's configuration with this endpoint in the place of every service of PCK certificates."""
    settings = {setting.key: setting.value for setting in reversed(file.settings)}
    # Not twice: the parameters and headers are for the services behind the endpoint.
    settings.pop("custom_request_options", None)
    return json.dumps(settings | {"local_pck_url": url, "pccs_url": url, "retry_times": 0}).encode()


def _no_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep the provider from asking us through a proxy: libcurl takes those of the environment for loopback too."""
    names = [name for name in ("no_proxy", "NO_PROXY") if environ.get(name)] or ["no_proxy"]
    return {name: ",".join(filter(None, (environ.get(name, ""), "127.0.0.1"))) for name in names}


def _is_http(url: str) -> bool:
    try:
        parse_http_url(url, "a collateral service")
    except ConfigError:
        return False
    return True


def _proxy(url: str) -> str | None:
    """The proxy that libcurl would use."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _texts(values: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - of a file
    found = values.items() if isinstance(values, dict) else ()
    return tuple((name, value) for name, value in found if isinstance(value, str))


def _without_ppid(request: PckCertRequest) -> PckCertRequest:
    return replace(request, encrypted_ppid=None)
