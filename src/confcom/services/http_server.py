"""An ASGI application on a socket: bounded connections, heads and waits; uvicorn inside, signals left to the process.

What uvicorn does not limit is limited here: the time that a client takes for a request's head and for the TLS
handshake, and the connections at a time. When these run out, the one that has been silent for longest makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from confcom.errors import ConfigError
from confcom.services.file_descriptors import available_descriptors
from confcom.services.stop_accepting import stop_accepting
from confcom.services.tls import HeldTls, ReloadingTls, TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where and within which limits. `address` is HOST:PORT (port 0: any) or the path of a Unix socket."""

    address: tuple[str, int] | Path
    tls: TlsFiles | HeldTls | None = None
    max_connections: int = 1024
    fd_reserve: int = 64
    """File descriptors that connections leave to the rest of the process."""
    max_head: int = 16 * 1024
    """Bytes of a request line with its headers."""
    head_timeout: float = 5.0
    """Seconds for the TLS handshake, and for a request's head from its first byte."""
    body_timeout: float = 15.0
    """Seconds for a request's body."""
    idle_timeout: float = 30.0
    """Seconds that a connection may stay without a request."""
    drain_timeout: float = 10.0
    """Seconds that requests under way get when the server stops."""
    backlog: int = 1024


async def serve_http(
    app: Callable[..., Any],
    listener: Listener,
    *,
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until `stop` is set, then let requests end. `started` is told the URL once connections are accepted."""
    tls = ReloadingTls(listener.tls) if isinstance(listener.tls, TlsFiles) else listener.tls
    with contextlib.ExitStack() as cleaning:
        bound = _bind(listener, cleaning)
        server = _Server(_config(app, listener, tls), listener)
        if tls is not None:
            watching = asyncio.create_task(tls.watch(), name="tls-watch")
            cleaning.callback(watching.cancel)
        serving = asyncio.create_task(server.serve(sockets=[bound]), name="http-server")
        try:
            await _first(asyncio.create_task(server.listening.wait()), serving)
            if started is not None and not serving.done():
                started(_url(bound, listener))
            await _first(asyncio.create_task(stop.wait()), serving)
        finally:
            server.should_exit = True
            await serving


async def _first(event: asyncio.Task[Any], serving: asyncio.Task[None]) -> None:
    """Wait for the event, or for the server to end before it."""
    try:
        await asyncio.wait({event, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event.cancel()


def _config(app: Callable[..., Any], listener: Listener, tls: ReloadingTls | HeldTls | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, int(listener.idle_timeout)),
        timeout_graceful_shutdown=max(1, int(listener.drain_timeout)),
        h11_max_incomplete_event_size=listener.max_head,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
        backlog=listener.backlog,
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with limits on connections."""

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self.listener = listener
        self.listening = asyncio.Event()
        self.limit = max(1, min(listener.max_connections, available_descriptors() - listener.fd_reserve))
        # Connections that have no request under way, in the order in which they became so.
        self.silent: dict[_Protocol, None] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process's entry point."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, with a deadline for the TLS handshake."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        encrypted = self.config.ssl is not None
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=bound,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self.listener.head_timeout if encrypted else None,
                ssl_shutdown_timeout=1.0 if encrypted else None,
            )
            for bound in sockets or ()
        ]
        self.started = True
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as uvicorn does, without losing whom we are just letting in."""
        await stop_accepting(sockets or ())
        await super().shutdown(sockets)

    def _protocol(self) -> _Protocol:
        return _Protocol(self.config, self.server_state, {}, server=self)


class _Protocol(H11Protocol):
    """One connection, with a deadline for each request's head and one for its body."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], *, server: _Server
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._server = server
        self._awaited: object = None  # the state of the client that the deadline is for
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept, if need be in the place of the connection that has been silent for longest."""
        super().connection_made(transport)
        if len(self.connections) > self._server.limit:
            oldest = next(iter(self._server.silent), self)
            oldest.transport.abort()
        self._server.silent[self] = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._server.silent.pop(self, None)
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what was begun has a deadline that further bytes do not move."""
        limit = self._server.listener.max_head
        if len(data) > limit and self.conn.their_state is h11.IDLE and data.find(b"\r\n\r\n", 0, limit) < 0:
            # h11 limits a head only while it is incomplete.
            self.send_400_response(f"The head of the request is longer than {limit} bytes.")
            return
        super().data_received(data)
        self._watch()
        if self.conn.their_state is not h11.IDLE:
            self._server.silent.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn's own timer ends connections that stay without one."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._server.silent[self] = None

    def _watch(self) -> None:
        state = self.conn.their_state
        if state is self._awaited and self._deadline is not None:
            return
        self._cancel()
        limits = {h11.IDLE: self._server.listener.head_timeout, h11.SEND_BODY: self._server.listener.body_timeout}
        if state in limits:
            self._awaited = state
            self._deadline = self.loop.call_later(limits[state], self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _bind(listener: Listener, cleaning: contextlib.ExitStack) -> socket.socket:
    """A bound socket, closed with the stack."""
    if isinstance(listener.address, Path):
        return _bind_unix(listener.address, cleaning)
    host, port = listener.address
    try:
        bound = cleaning.enter_context(_open_socket(host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", advice="Name another address with --listen."
        ) from error
    bound.setblocking(False)
    return bound


def _open_socket(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With the protocol's number: asyncio sets TCP_NODELAY only on sockets that know theirs, and without it a body
        # waits 40 ms for the acknowledgement of its head.
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        # [::] means every address, on a machine without IPv6 too.
        return _open_socket("0.0.0.0", port)  # noqa: S104 - as told
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: Path, cleaning: contextlib.ExitStack) -> socket.socket:
    bound = cleaning.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    bound.setblocking(False)
    try:
        if path.is_socket() and not _is_served(path):
            path.unlink()
        bound.bind(str(path))
        path.chmod(0o666)  # what it serves is public, and what changes something wants a token
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {path}: {error.strerror or error}",
            advice="Name a path in a folder that can be written, where nothing else listens.",
        ) from error
    inode = path.stat().st_ino
    cleaning.callback(_remove_own, path, inode)
    return bound


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _remove_own(path: Path, inode: int) -> None:
    """Remove the socket, unless a successor stands at its path by now."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _url(bound: socket.socket, listener: Listener) -> str:
    scheme = "http" if listener.tls is None else "https"
    if isinstance(listener.address, Path):
        return f"{scheme}+unix://{listener.address}"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
