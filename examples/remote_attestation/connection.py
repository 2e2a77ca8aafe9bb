"""Frames between two peers: what kind, how long, and then the bytes; every length has a limit and every wait an end.

A frame is one byte for its kind, four bytes for the length of its payload (big-endian), and the payload. The limit
of a kind is checked before anything of the payload is read.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from confcom import ConfigError
from confcom.errors import RemoteProtocolError

RETRY_PAUSE = 0.05
"""Seconds between attempts to connect: the other side may be just starting."""


class Frame(IntEnum):
    """Kinds of frames."""

    HELLO = 1
    EVIDENCE = 2
    MESSAGE = 3
    REFUSED = 15


LIMITS = {Frame.HELLO: 1024, Frame.EVIDENCE: 64 * 1024, Frame.MESSAGE: 64 * 1024, Frame.REFUSED: 64}
"""Bytes of payload."""


class Connection:
    """One conversation, which must be over `timeout` seconds after its beginning."""

    def __init__(self, stream: socket.socket, timeout: float) -> None:
        self._stream = stream
        self._deadline = time.monotonic() + timeout

    def send(self, kind: Frame, payload: bytes) -> None:
        """Write one frame."""
        if len(payload) > LIMITS[kind]:
            raise ConfigError(f"a frame {kind.name} has at most {LIMITS[kind]} bytes, this one {len(payload)}")
        self._wait()
        with _translated("sending"):
            self._stream.sendall(bytes([kind]) + len(payload).to_bytes(4, "big") + payload)

    def receive(self, expected: Frame) -> bytes:
        """Read one frame of that kind; a peer that refused us says so instead."""
        head = self._read(5)
        kind, length = head[0], int.from_bytes(head[1:], "big")
        if kind not in {expected, Frame.REFUSED}:
            raise RemoteProtocolError(f"the peer sent a frame of kind {kind} where {expected.name} was due")
        if length > LIMITS[Frame(kind)]:
            raise RemoteProtocolError(f"the peer announced {length} bytes, the limit is {LIMITS[Frame(kind)]}")
        payload = self._read(length)
        if kind == Frame.REFUSED:
            code = "".join(char for char in payload.decode("ascii", "replace") if char.isalnum() or char == "-")
            raise RemoteProtocolError(
                f"the peer refused to go on: {code}", advice="The peer's own output says what it did not accept."
            )
        return payload

    def refuse(self, code: str) -> None:
        """Tell the peer in one word that this is the end; no details, because it may be an enemy."""
        with contextlib.suppress(RemoteProtocolError, OSError):
            self.send(Frame.REFUSED, code.encode("ascii", "replace")[: LIMITS[Frame.REFUSED]])

    def _read(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            self._wait()
            with _translated("waiting for the peer"):
                piece = self._stream.recv(count - len(received))
            if not piece:
                raise RemoteProtocolError("the peer ended the conversation")
            received += piece
        return bytes(received)

    def _wait(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise RemoteProtocolError("the conversation took too long")
        self._stream.settimeout(remaining)


@contextlib.contextmanager
def listen(address: str, timeout: float) -> Iterator[socket.socket]:
    """A listening socket at `unix:PATH` or `HOST:PORT`, for one peer that comes within `timeout` seconds."""
    path = _unix_path(address)
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        try:
            if path is None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(path or _host_and_port(address))
            listener.listen(1)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from error
        listener.settimeout(timeout)
        try:
            yield listener
        finally:
            if path is not None:
                Path(path).unlink(missing_ok=True)


def accept(listener: socket.socket) -> socket.socket:
    """The first peer that comes."""
    with _translated("waiting for a peer to come"):
        stream, _ = listener.accept()
    return stream


def connect(address: str, timeout: float) -> socket.socket:
    """Connect to a peer, trying again until `timeout` seconds are over."""
    path = _unix_path(address)
    deadline = time.monotonic() + timeout
    while True:
        stream = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        stream.settimeout(timeout)
        try:
            stream.connect(path or _host_and_port(address))
        except OSError as error:
            stream.close()
            if time.monotonic() > deadline:
                raise RemoteProtocolError(f"no peer answers at {address}: {error.strerror or error}") from error
            time.sleep(RETRY_PAUSE)
        else:
            return stream


def _unix_path(address: str) -> str | None:
    return address.removeprefix("unix:") if address.startswith("unix:") else None


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ConfigError(f"{address!r} is no address", advice="Write unix:PATH or HOST:PORT.")
    return host, int(port)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise RemoteProtocolError(f"too long: {doing}") from error
    except OSError as error:
        raise RemoteProtocolError(f"{doing}: {error.strerror or error}") from error
