"""Takes connections from listening sockets, several at a time, and pauses when the system refuses to give any.

The backlog is one for all clients. While they come faster than they are taken, it is made short: a good client then
waits in the kernel's own queue, where each gets a place in its turn, instead of behind all that others have put in the
backlog.
"""

from __future__ import annotations

import _socket
import asyncio
import socket
from collections.abc import Callable

import structlog

ACCEPT_BATCH = 16
"""Connections accepted before other work gets its turn."""
ACCEPT_PAUSE = 0.05
"""Seconds without accepting after the system refused to."""
SHORT_BACKLOG = 8
"""Connections that may wait in a flood."""
SHORT_FOR = 8
"""Looks at the flood before the backlog is as long as before and the next one decides again."""


class Acceptor:
    """Watches listening sockets and hands over what it accepts.

    `welcome` gets each connection, `done` is called behind each batch, and `make_room` asks for so many file
    descriptors back when the system has none left for us.
    """

    def __init__(
        self,
        welcome: Callable[[_socket.socket], None],
        done: Callable[[], None],
        make_room: Callable[[int], None],
        *,
        backlog: int,
    ) -> None:
        self._welcome = welcome
        self._done = done
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[socket.socket, None] = {}
        self._full_backlog = backlog
        self._backlog = backlog
        self._short_for = 0
        self._accepted = 0
        self._batches = 0
        self._full_batches = 0

    @property
    def listens(self) -> bool:
        """Whether connections are accepted anywhere."""
        return bool(self._listeners)

    def listen(self, listener: socket.socket) -> None:
        """Begin to accept there."""
        listener.listen(self._backlog)
        self._listeners[listener] = None
        self._resume(listener)

    async def drain(self, listener: socket.socket) -> None:
        """Accept nothing there beyond the present backlog."""
        self._listeners.pop(listener, None)
        self._loop.remove_reader(listener)
        while self.accept(listener):
            await asyncio.sleep(0)

    def accept(self, listener: socket.socket) -> bool:
        """Take connections from the backlog; says whether there may be more."""
        # What Python's own `accept` and `socket` add costs a quarter more, which a flood multiplies.
        accept, new = listener._accept, _socket.socket  # type: ignore[attr-defined]
        accepted = 0
        while accepted < ACCEPT_BATCH:
            try:
                client = new(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, accept()[0])
            except BlockingIOError:
                break
            except OSError as error:
                self._pause(listener, error)
                break
            accepted += 1
            self._welcome(client)
        self._accepted += accepted
        self._batches += 1
        self._full_batches += accepted == ACCEPT_BATCH
        self._done()
        return accepted == ACCEPT_BATCH

    def adapt_backlog(self, *, new: int) -> None:
        """Make the backlog short or long; to be called several times a second.

        Of the connections since the last call, `new` were the first of their process.
        """
        # A flood of new processes needs the long one: each of them would wait in the kernel's queue before a good one.
        flood = 2 * self._full_batches > self._batches and 2 * new < self._accepted
        self._accepted = self._batches = self._full_batches = 0
        self._short_for = SHORT_FOR if flood else max(0, self._short_for - 1)
        backlog = SHORT_BACKLOG if self._short_for else self._full_backlog
        if backlog != self._backlog:
            self._backlog = backlog
            for listener in self._listeners:
                listener.listen(backlog)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog. Trying again at once would only burn the processor.
        structlog.get_logger().warning("aesm.accept", reason=error.strerror)
        self._make_room(ACCEPT_BATCH)
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self.accept, listener)
