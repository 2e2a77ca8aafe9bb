"""Fresh evidence on an event loop that does not stand still: the quote is made before the handshake begins.

OpenSSL asks for the certificate in the middle of a handshake and cannot wait for a thread. So the client's first
message is looked at while it is still in the socket (MSG_PEEK), and the handshake starts when the certificate is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from confcom.atls.client import nonce_of_name
from confcom.atls.server import ServerContext
from confcom.errors import ConfcomError, FormatError
from confcom.formats.codec import Cursor

MAX_HELLO = 5 + 16 * 1024
"""Bytes of the first record of TLS, with its head."""
DEADLINE = 10.0
"""Seconds from the connection to the end of the handshake."""
MAX_PENDING = 100
"""Connections before the end of their handshake."""
PATIENCE = 2.0
"""Seconds after which a connection is ended if others wait for its place."""
_LOOK_AGAIN = 0.02

_log = logging.getLogger("confcom.atls")


async def serve_fresh(
    listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], context: ServerContext
) -> None:
    """Serve the connections of a listening socket until cancelled, each with a protocol of its own, over attested TLS.

    As `loop.create_server(protocol, sock=listener, ssl=context)`, but quotes for clients that ask for fresh evidence
    are made in threads meanwhile. Connections that were handed to their protocol stay when this is cancelled.
    """
    await serve_each(listener, lambda stream: _begin(stream, protocol, context))


async def serve_each(listener: socket.socket, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Run `serve` for the connections of a listening socket until cancelled, about `MAX_PENDING` at a time.

    Beyond that others wait until one ends, or end the oldest when that is `PATIENCE` old.
    """
    loop, tasks = asyncio.get_running_loop(), dict[asyncio.Task[None], float]()
    listener.setblocking(False)
    try:
        while True:
            stream, _ = await _accept(listener)
            task = loop.create_task(serve(stream))
            tasks[task] = loop.time()
            task.add_done_callback(lambda done: tasks.pop(done, None))
            await asyncio.sleep(0)  # starts the task: one that is cancelled before does not close its socket
            if len(tasks) > MAX_PENDING:
                oldest, began = next(iter(tasks.items()))
                left = max(began + PATIENCE - loop.time(), 0)
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if len(tasks) > MAX_PENDING:
                    tasks.pop(oldest, None)
                    oldest.cancel()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _accept(listener: socket.socket) -> tuple[socket.socket, object]:
    while True:
        try:
            return await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:  # no more file descriptors, or the client left
            _log.warning("a connection was not accepted: %s", error.strerror)
            await asyncio.sleep(_LOOK_AGAIN)


async def _begin(stream: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], context: ServerContext) -> None:
    stream.setblocking(False)
    try:
        async with asyncio.timeout(DEADLINE):
            nonce = nonce_of_name(server_name(await _first_record(stream)))
            if nonce is not None:
                await asyncio.to_thread(context.prepare, nonce, stream)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, stream, ssl=context)
    except (OSError, TimeoutError):
        stream.close()  # the client left, or refused us
    except ConfcomError as error:
        stream.close()
        _log.warning("a connection was not served (%s): %s", error.code, error)
    except BaseException:
        stream.close()
        raise


async def _first_record(stream: socket.socket) -> bytes:
    """The first record of TLS, or what there is of it when the client ends; it stays in the socket."""
    await _readable(stream)
    while True:
        seen = stream.recv(MAX_HELLO, socket.MSG_PEEK)
        size = 5 + int.from_bytes(seen[3:5], "big")
        if not seen or seen[0] != _HANDSHAKE or (len(seen) >= 5 and len(seen) >= min(size, MAX_HELLO)):
            return seen[:size]
        await asyncio.sleep(_LOOK_AGAIN)  # it is readable, with less than we need


async def _readable(stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(stream, wake)
    try:
        await ready
    finally:
        loop.remove_reader(stream)


_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _DNS = 22, 1, 0, 0


def server_name(record: bytes) -> str | None:
    """The server's name in a ClientHello that one record of TLS holds (RFC 8446 §4.1.2, RFC 6066 §3).

    None for everything else, and where there is no name: the handshake itself is the judge of what is malformed.
    """
    with contextlib.suppress(FormatError):
        return _read_name(Cursor(record, "ClientHello"))
    return None


def _read_name(hello: Cursor) -> str | None:
    if hello.take(1, "record")[0] != _HANDSHAKE:
        return None
    hello.take(4, "record")
    if hello.take(1, "handshake")[0] != _CLIENT_HELLO:
        return None
    hello.take(3 + 2 + 32, "random")
    for size, field in ((1, "session"), (2, "ciphers"), (1, "compression")):
        hello.take(_number(hello, size), field)
    extensions = Cursor(hello.take(_number(hello, 2), "extensions"), "extensions")
    while extensions.remaining:
        kind = _number(extensions, 2)
        content = extensions.take(_number(extensions, 2), "extension")
        if kind == _SERVER_NAME:
            names = Cursor(content, "server_name")
            names.take(2, "list")
            if _number(names, 1) != _DNS:
                return None
            return names.take(_number(names, 2), "name").decode("ascii", "replace")
    return None


def _number(cursor: Cursor, size: int) -> int:
    return int.from_bytes(cursor.take(size, "length"), "big")
