"""How an asyncio server stops without losing whom it is just letting in.

asyncio accepts a connection in one turn of the loop and makes its transport in a later one. If the server is closed in
between, making it fails, nobody is told, and the connection stays open until the memory is collected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

TURNS = 4
"""Of the loop, after which whoever was accepted before is served, and whoever was ended before is let go."""


class Listening(Protocol):
    """A listening socket, or what asyncio shows of one."""

    def fileno(self) -> int:
        """Its descriptor; negative once it is closed."""


async def stop_accepting(listeners: Iterable[Listening]) -> None:
    """Let nobody else in, and wait until all who were let in are served. Close the server then."""
    for listener in listeners:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(listener.fileno())
    await settle()


async def settle() -> None:
    """Let the loop do what it has been told."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
