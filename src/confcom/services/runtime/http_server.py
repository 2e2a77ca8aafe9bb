"""HTTP/1.1 for our daemons: an ASGI application on a socket, with limits on everything that a client can hold.

h11 reads and writes the protocol. This module owns the connections: how many there are, which one makes room for a new
one, how long each step of a request may take, and how many bytes of output may wait for clients that do not read them
(docs/adr/0005-http-server.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import h11
import structlog

from confcom.services.runtime.listener import Want, available_descriptors, bind_tcp, bind_unix, settle
from confcom.services.runtime.process import background
from confcom.services.runtime.tls import HeldTls, client_of

CHUNK = 64 * 1024
"""Bytes read at a time, and bytes of output that a client must take within `write_timeout`."""
ACCEPTS = 64
"""Connections accepted in one turn of the event loop."""
ACCEPT_PAUSE = 0.5
"""Seconds without accepting after the process ran out of file descriptors."""
GRACE = 1.0
"""Seconds for which a connection that waits for its client is kept before those at work, if others have to go."""
FIRST_REQUEST = 2.0
"""Seconds that a new connection, or a request that has begun, gets when the server stops: its client was let in."""
LINGER = 1.0
"""Seconds for which the rest of a request is read and dropped, so that the client gets the answer before the end."""
BODY_RATE = 256 * 1024
"""Bytes of a request's body that give it another second."""
TINY = 1024
"""Bytes; after a smaller piece of a body others have a turn."""
V4_MAPPED = bytes(10) + b"\xff\xff"
_ABSOLUTE = re.compile(rb"\Ahttps?://[^/?]*", re.IGNORECASE)
"""What a request target in absolute form has before its path (RFC 9112, 3.2.2): proxies' clients send it."""
_HOST = re.compile(rb"[\w.~%!$&'()*+,;=:\[\]-]*")
"""What a Host header may have in it (RFC 3986, 3.2.2)."""
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}

Message = MutableMapping[str, Any]
"""An ASGI event, or the scope of a request."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class Page(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = TEXT

    async def send(self, send: Send) -> None:
        length = str(len(self.body)).encode()
        headers = [(b"content-type", self.content_type.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


Application = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where and within which limits. `address` is HOST:PORT (port 0: any) or the path of a Unix socket."""

    address: tuple[str, int] | Path
    tls: HeldTls | None = None
    max_connections: int = 1024
    """Beyond this, a connection of the address that has most makes room: the oldest idle one, else the oldest."""
    fd_reserve: int = 64
    """File descriptors that connections leave to the rest of the process."""
    max_head: int = 16 * 1024
    """Bytes of a request line with its headers."""
    head_timeout: float = 5.0
    """Seconds for the TLS handshake, and again for a request's head."""
    body_timeout: float = 15.0
    """Seconds for a request's body."""
    idle_timeout: float = 30.0
    """Seconds that a connection may stay without a request."""
    write_timeout: float = 10.0
    """Seconds in which a client must take the next 64 KiB of an answer."""
    output_memory: int = 64 << 20
    """Bytes of answers that clients have not taken yet. Beyond this, the one that waits for longest is aborted."""
    leave_after: float = 0.0
    """Seconds for which it still answers after `stop`, and ends each connection: callers find another replica."""
    drain_timeout: float = 10.0
    """Seconds that requests under way get when the server stops."""
    backlog: int = 1024


async def serve_http(
    app: Application,
    listener: Listener,
    *,
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until `stop` is set or cancelled, then let requests end. `started` gets the URL once there is a socket."""
    tls = listener.tls
    async with contextlib.AsyncExitStack() as cleaning:
        listening = _bind(listener, cleaning)
        listening.setblocking(False)
        if tls is not None:
            await cleaning.enter_async_context(background("tls-watch", tls.watch))
        server = _Server(app, listener, listening)
        server.start()
        try:
            if started is not None:
                started(_url(listening, listener))
            await stop.wait()
            server.leaving = True
            await asyncio.sleep(listener.leave_after)
        finally:
            await server.close()


class _Server:
    """The connections of a listening socket."""

    def __init__(self, app: Application, listener: Listener, listening: socket.socket) -> None:
        self.app = app
        self.listener = listener
        self.closing = self.leaving = False
        self.clients: dict[bytes, _Client] = {}
        self.unread: dict[_Connection, int] = {}
        """Bytes of answers that connections have not taken yet; the one that waits for longest is first."""
        self._unread_total = 0
        self._count = 0
        self._listening = listening
        self._want = Want("http.accept")
        self._limit = max(1, min(listener.max_connections, available_descriptors() - listener.fd_reserve))
        self._tasks: set[asyncio.Task[None]] = set()
        self._abandoned: set[_Connection] = set()
        """Aborted connections for which the application still works."""
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        if not self.closing:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    async def close(self) -> None:
        """Stop accepting; end idle connections now and the others after their request, or at the deadline.

        Who was let in is served, from the kernel's queue too: to be cut off before a first answer is a failure.
        """
        until = self._loop.time() + self.listener.drain_timeout
        self.closing = self.leaving = True
        self._loop.remove_reader(self._listening.fileno())
        for _ in range(self.listener.backlog // ACCEPTS + 1):
            self._accept()
        self._listening.close()
        await settle()
        for patience in 0.0, min(FIRST_REQUEST, self.listener.drain_timeout):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=patience)
            for connection in [one for client in self.clients.values() for one in client.waiting]:
                if not connection.asked and (patience or not connection.expects_request):
                    connection.abort()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=max(0, until - self._loop.time()))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await settle()  # asyncio closes the sockets of aborted connections in a turn of its own

    def set_unread(self, connection: _Connection, size: int) -> None:
        """Note how much a connection still has to take; beyond the limit the one that waits for longest is aborted."""
        self._unread_total += size - self.unread.pop(connection, 0)
        if size:
            self.unread[connection] = size
            if self._unread_total > self.listener.output_memory:
                next(iter(self.unread)).abort()

    def forget(self, connection: _Connection) -> None:
        """Free the place of a connection that ended or was aborted."""
        self.set_unread(connection, 0)
        client = self.clients.get(connection.key, _Client())
        if connection in client:
            self._count -= 1
            if connection.asked:
                self._abandoned.add(connection)
            client.waiting.pop(connection, None)
            client.working.pop(connection, None)
            if not len(client):
                del self.clients[connection.key]

    def expect(self, connection: _Connection, *, client_acts: bool) -> None:
        """Note whether the next step is the client's or ours; nothing for a connection that was aborted."""
        client = self.clients.get(connection.key, _Client())
        if connection in client:
            client.waiting.pop(connection, None)
            client.working.pop(connection, None)
            if client_acts:
                client.waiting[connection] = self._loop.time()
            else:
                client.working[connection] = None

    def ended(self, connection: _Connection) -> None:
        """Forget a connection of which nothing runs any more."""
        self.forget(connection)
        self._abandoned.discard(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, address = self._listening.accept()
            except BlockingIOError:
                self._want.note(None)
                return
            except (InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._want.note(error)
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(ACCEPT_PAUSE, self.start)
                return
            accepted.setblocking(False)
            self._admit(accepted, address)

    def _admit(self, accepted: socket.socket, address: Any) -> None:  # noqa: ANN401 - as the family has it
        key = _client_key(address)
        own = self.clients.get(key, _Client())
        if self._count >= self._limit:
            # An address that has its share makes room itself; else the one that has most does.
            share = max(1, self._limit // (len(self.clients) + (key not in self.clients)))
            full = own if len(own) >= share else max(self.clients.values(), key=len)
            full.first_to_go(self._loop.time(), self._limit // 2).abort()
        if len(self._abandoned) >= self._limit:
            accepted.close()
            return
        connection = _Connection(self, accepted, address, key)
        self.clients.setdefault(key, _Client()).waiting[connection] = self._loop.time()
        self._count += 1
        connection.task = self._loop.create_task(connection.run(), name="http-connection")
        self._tasks.add(connection.task)
        connection.task.add_done_callback(connection.finish)
        connection.task.add_done_callback(self._tasks.discard)


class _Client:
    """The connections of an address, oldest first: those that wait for their client, and those at work for it."""

    def __init__(self) -> None:
        self.waiting: dict[_Connection, float] = {}
        """Since when the client is expected to do something: to send, or to read."""
        self.working: dict[_Connection, None] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.working)

    def __contains__(self, connection: _Connection) -> bool:
        return connection in self.waiting or connection in self.working

    def first_to_go(self, now: float, half: int) -> _Connection:
        """The oldest that waits for its client. A new one has `GRACE` first, or a crowd of them would close it."""
        oldest = next(iter(self.waiting), None)
        if oldest is None or (self.working and now - self.waiting[oldest] < GRACE and len(self.waiting) <= half):
            return next(iter(self.working))
        return oldest


class _Gone(ConnectionError):
    """The client left, broke the protocol, or took too long: it gets no further answer."""


class _Connection:
    """One connection: requests one after another, each answered before the next is looked at."""

    def __init__(self, server: _Server, accepted: socket.socket, address: Any, key: bytes) -> None:  # noqa: ANN401
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self.asked = False
        """Whether there is a request to answer."""
        self._server = server
        self._limits = server.listener
        self._accepted = accepted
        self._peer = address[:2] if isinstance(address, tuple) else None
        self._reader = asyncio.StreamReader(limit=CHUNK // 2)
        self._writer: asyncio.StreamWriter | None = None
        self._http = self._new_http()
        self._opened = False
        self._first = True
        self._is_head = False
        self._head: h11.Response | None = None
        self._body_until = 0.0
        self._client: dict[str, Any] = {"client_common_name": None}
        """Of ASGI's TLS extension."""

    @property
    def expects_request(self) -> bool:
        """Whether a request is due: the first one, or one of which a part was received."""
        return self._first or bool(self._http.trailing_data[0])

    def abort(self) -> None:
        """End the connection now. An application that still works for it notices when it reads or writes."""
        self._server.forget(self)
        if self._writer is not None:
            _abort(self._writer)
        elif self._opened:
            # Not by cancelling: asyncio would go on with a handshake that has not begun.
            with contextlib.suppress(OSError):
                self._accepted.shutdown(socket.SHUT_RDWR)
        elif self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        try:
            await self._open()
            while await self._exchange():
                await asyncio.sleep(0)  # pipelined requests must not keep the loop from others
            await self._close()
        except (OSError, TimeoutError):
            pass

    def finish(self, _task: asyncio.Task[None]) -> None:
        """Free what the connection holds, whatever ended it."""
        self._server.ended(self)
        if (error := self._reader.exception()) is not None:
            error.__traceback__ = None  # its frames hold this connection, which holds the reader
        if self._writer is not None:
            _abort(self._writer)
        elif not self._opened:
            self._accepted.close()  # else asyncio has closed it

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        tls = self._limits.tls
        self._opened = True
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                self._accepted,
                ssl=None if tls is None else tls.context,
                ssl_handshake_timeout=None if tls is None else self._limits.head_timeout,
                ssl_shutdown_timeout=None if tls is None else LINGER,
            )
        except OSError as error:
            # The error, asyncio's frame in its traceback and the future there hold each other, and with them the
            # 300 KiB of a TLS connection, which only a full garbage collection would free.
            raise error.with_traceback(None) from None
        transport.set_write_buffer_limits(high=0)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        if tls is not None and tls.client_ca is not None:
            self._client = client_of(transport.get_extra_info("ssl_object"))

    async def _close(self) -> None:
        """End the connection so that the answer arrives: unread bytes would reset it."""
        writer = self._open_writer()
        if self._http.their_state is not h11.DONE and self._http.their_state is not h11.CLOSED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    if writer.can_write_eof():
                        writer.write_eof()
                    while await self._reader.read(CHUNK):
                        pass
        writer.close()
        async with asyncio.timeout(self._limits.write_timeout):
            await writer.wait_closed()

    async def _exchange(self) -> bool:
        """Serve one request; says whether another may follow."""
        try:
            request = await self._next_request()
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))
            return False
        if request is None:
            return False
        if fault := _framing_fault(request) or self._client_fault():
            await self._refuse(*fault)
            return False
        self.asked = True
        await self._answer(request)
        self.asked = False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self._server.expect(self, client_acts=True)
        return not self._server.closing

    def _client_fault(self) -> tuple[int, str] | None:
        """Status and reason of a refusal: since the handshake the certificate expired, or its CA was replaced."""
        tls = self._limits.tls
        if tls is None or tls.client_ca is None or tls.admits(self._open_writer().get_extra_info("ssl_object")):
            return None
        return 401, "a client's certificate as in this connection is not accepted any more: connect again"

    async def _next_request(self) -> h11.Request | None:
        """The head of the next request; None if the client has ended the connection."""
        limits, event = self._limits, self._next_head()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(limits.head_timeout if self._first else limits.idle_timeout):
                await self._read(limits.max_head)
            event = self._next_head()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(limits.head_timeout):
                while event is h11.NEED_DATA:
                    await self._read(limits.max_head - len(self._http.trailing_data[0]))
                    event = self._next_head()
        self._first = False
        return event if isinstance(event, h11.Request) else None

    def _next_head(self) -> object:
        """h11's next event between requests. It refuses empty lines there, which some clients send (RFC 9112, 2.2)."""
        received, _ = self._http.trailing_data
        if received[:1] in (b"\r", b"\n"):
            self._http = self._new_http()
            if rest := received.lstrip(b"\r\n"):  # h11 takes an empty one for the end of the connection
                self._http.receive_data(rest)
        return self._http.next_event()

    def _new_http(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.max_head - 1)

    async def _answer(self, request: h11.Request) -> None:
        path, _, query = _ABSOLUTE.sub(b"", request.target, 1).partition(b"?")
        path = path or b"/"
        self._is_head = request.method == b"HEAD"
        self._body_until = asyncio.get_running_loop().time() + self._limits.body_timeout
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http" if self._limits.tls is None else "https",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self._peer,
            "server": None,
            "extensions": {"tls": self._client},
        }
        try:
            if not any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers):
                self._server.expect(self, client_acts=False)
            await self._server.app(scope, self._receive, self._send)
        except _Gone:
            raise
        except Exception:  # noqa: BLE001 - an error of ours must not look like a failure of the network
            structlog.get_logger().exception("http.mistake", path=str(scope["path"])[:100])
            await self._refuse(500, "a mistake in the service")
        if self._http.our_state is h11.SEND_RESPONSE or self._http.our_state is h11.SEND_BODY:
            raise _Gone

    async def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, and end the connection; nothing if an answer has begun."""
        if self._http.our_state is h11.IDLE or self._http.our_state is h11.SEND_RESPONSE:
            headers = [(b"content-type", TEXT.encode()), (b"connection", b"close")]
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": f"{message}\n".encode()})

    async def _receive(self) -> Message:
        """ASGI's `receive`. After the body it says `http.disconnect`: no application here waits for its client."""
        http = self._http
        try:
            event: object = http.next_event() if http.their_state is h11.SEND_BODY else h11.PAUSED
            if event is h11.NEED_DATA:  # else there is nothing to wait for, and a timeout costs several microseconds
                async with asyncio.timeout_at(self._body_until):
                    while event is h11.NEED_DATA:
                        if http.they_are_waiting_for_100_continue:
                            await self._write(http.send(h11.InformationalResponse(status_code=100, headers=[])), 0)
                        await self._read(CHUNK)
                        event = http.next_event()
        except h11.RemoteProtocolError:
            event = h11.PAUSED  # the application says 400, and the connection ends
        except (TimeoutError, OSError):
            self.abort()
            event = h11.PAUSED
        if isinstance(event, h11.Data):
            self._body_until += len(event.data) / BODY_RATE
            if len(event.data) < TINY:
                await asyncio.sleep(0)
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        if isinstance(event, h11.EndOfMessage):
            self._server.expect(self, client_acts=False)
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """ASGI's `send`. It raises `OSError` once the client has gone, or does not read."""
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"date", formatdate(usegmt=True).encode())]
            if self._server.leaving or not self._has_whole_request():
                headers.append((b"connection", b"close"))
            self._head = h11.Response(
                status_code=message["status"], headers=headers, reason=_REASONS.get(message["status"], b"")
            )
            return
        data = b""
        if self._head is not None:
            data, self._head = self._http.send(self._head), None
        body = memoryview(b"" if self._is_head else message.get("body", b""))
        for begin in range(0, len(body), CHUNK):
            piece = self._http.send(h11.Data(data=bytes(body[begin : begin + CHUNK])))
            await self._write(data + piece, len(body) - begin - CHUNK)
            data = b""
        if not message.get("more_body", False):
            data += self._http.send(h11.EndOfMessage())
        if data:
            await self._write(data, 0)

    def _has_whole_request(self) -> bool:
        """Whether the request's end was received; what is left of its body here is passed over."""
        with contextlib.suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and self._http.next_event() is not h11.NEED_DATA:
                pass
        return self._http.their_state is h11.DONE

    async def _read(self, size: int) -> None:
        self._http.receive_data(await self._reader.read(size))

    async def _write(self, data: bytes, more: int) -> None:
        """Write, and wait until the client takes it; `more` bytes are to follow."""
        writer = self._open_writer()
        transport = writer.transport
        if transport.is_closing():
            raise _Gone
        writer.write(data)
        if waiting := transport.get_write_buffer_size():
            self._server.set_unread(self, waiting + max(more, 0))
            self._server.expect(self, client_acts=True)
            try:
                async with asyncio.timeout(self._limits.write_timeout):
                    await writer.drain()
            except (OSError, TimeoutError):
                self.abort()
                raise _Gone from None
            finally:
                self._server.set_unread(self, 0)
            self._server.expect(self, client_acts=False)

    def _open_writer(self) -> asyncio.StreamWriter:
        if self._writer is None:
            raise _Gone
        return self._writer


def _abort(writer: asyncio.StreamWriter) -> None:
    # A TLS transport of Python 3.11.2 that was closed twice has no protocol any more: its shutdown ends by itself.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


def _framing_fault(request: h11.Request) -> tuple[int, str] | None:
    """Status and reason to refuse what a proxy may have split into other requests (RFC 9112, 2.3, 3.2, 6.1)."""
    names = {name for name, _ in request.headers}
    if request.http_version not in (b"1.0", b"1.1"):
        return 505, "only HTTP/1.1 is supported"
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        return 400, "Transfer-Encoding is refused together with Content-Length, and in HTTP/1.0"
    if not all(_HOST.fullmatch(value) for name, value in request.headers if name == b"host"):
        return 400, "the Host header has characters that no host has"
    return None


def _client_key(address: Any) -> bytes:  # noqa: ANN401 - as the family has it
    """What counts as one client: an IPv4 address, the network (/64) of an IPv6 address, all of a Unix socket."""
    if not isinstance(address, tuple):
        return b""
    if ":" not in address[0]:
        return socket.inet_aton(address[0])
    packed = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    return packed[12:] if packed.startswith(V4_MAPPED) else packed[:8]


def _bind(listener: Listener, cleaning: contextlib.AsyncExitStack) -> socket.socket:
    """A bound socket, closed with the stack."""
    if isinstance(listener.address, Path):
        return bind_unix(listener.address, listener.backlog, cleaning)
    return bind_tcp(*listener.address, listener.backlog, cleaning)


def _url(bound: socket.socket, listener: Listener) -> str:
    scheme = "http" if listener.tls is None else "https"
    if isinstance(listener.address, Path):
        return f"{scheme}+unix://{listener.address}"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
