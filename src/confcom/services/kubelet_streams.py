"""The streams that the kubelet holds open to a server of ours: all are told the same, whenever there is news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TypeVar

_Message = TypeVar("_Message")


class KubeletStreams:
    """`open` counts those that are open, `opened` those that ever were."""

    def __init__(self) -> None:
        self.open = 0
        self.opened = 0
        self.changed = asyncio.Event()
        """Set whenever a stream opens or ends; whoever waits for that clears it."""
        self._wake = asyncio.Event()
        self._closing = False

    async def follow(self, message: Callable[[], _Message], *, again: float | None = None) -> AsyncIterator[_Message]:
        """One stream's messages: at once, after each `awaken`, and every `again` seconds if given."""
        self.open += 1
        self.opened += 1
        self.changed.set()
        try:
            while not self._closing:
                wake = self._wake
                yield message()
                with suppress(TimeoutError):
                    async with asyncio.timeout(again):
                        await wake.wait()
        finally:
            self.open -= 1
            self.changed.set()

    def awaken(self) -> None:
        """There is something new."""
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    async def end(self) -> None:
        """End every stream in order, so that the kubelet closes its connections; the next one may open after that."""
        self._closing = True
        self.awaken()
        for _ in range(100):
            if not self.open:
                break
            await asyncio.sleep(0.01)
        self._closing = False
