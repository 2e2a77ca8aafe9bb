"""Takes connections from listening sockets, several at a time, and pauses when the system refuses to give any."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import structlog

ACCEPT_BATCH = 64
"""Connections accepted before other work gets its turn."""
ALONE = 8
"""Connections that came alone one after the other, after which only every eighth look is for more than one."""
ACCEPT_PAUSE = 0.05
"""Seconds without accepting after the system refused to."""


class Acceptor:
    """Watches listening sockets and hands over what it accepts.

    `welcome` gets each connection, `done` is called behind each batch, and `make_room` asks for so many file
    descriptors back when the system has none left for us.
    """

    def __init__(
        self, welcome: Callable[[socket.socket], None], done: Callable[[], None], make_room: Callable[[int], None]
    ) -> None:
        self._welcome = welcome
        self._done = done
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[socket.socket, None] = {}
        self._alone = 0

    @property
    def listens(self) -> bool:
        """Whether connections are accepted anywhere."""
        return bool(self._listeners)

    def listen(self, listener: socket.socket) -> None:
        """Begin to accept there."""
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
        # Where they keep coming one by one, looking for a second behind each would mostly be in vain.
        self._alone += 1
        batch = 1 if self._alone > ALONE and self._alone % ALONE else ACCEPT_BATCH
        accepted = 0
        while accepted < batch:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                self._pause(listener, error)
                break
            accepted += 1
            self._welcome(client)
        if accepted > 1:
            self._alone = 0
        self._done()
        return accepted == batch

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog. Trying again at once would only burn the processor.
        structlog.get_logger().warning("aesm.accept", reason=error.strerror)
        self._make_room(ACCEPT_BATCH)
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self.accept, listener)
