"""Blocking calls in threads of their own, bounded, awaited from the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Overloaded(Exception):
    """As many calls wait as may; never leaves the service: a client is told to come back."""


class WorkerThreads:
    """So many threads; at most `max_waiting` calls wait for one of them.

    The threads are daemons: a call that hangs in the network does not keep the process from ending.
    """

    def __init__(self, name: str, *, threads: int, max_waiting: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._room = threads + max_waiting
        self._under_way = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def under_way(self) -> int:
        """Calls that wait or run."""
        return self._under_way

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, or what it raises; `Overloaded` when too many wait.

        A call is dropped when its caller was cancelled before its turn.
        """
        if self._under_way >= self._room:
            raise Overloaded
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self._under_way += 1
        self._calls.put(lambda: self._perform(call, loop, result))
        return await result

    def close(self, timeout: float = 5.0) -> None:
        """Let the threads end after what they do now; waits that long for each."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _perform(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop, result: asyncio.Future[T]) -> None:
        value: Any = None
        failure: BaseException | None = None
        try:
            if not result.done():
                value = call()
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
            failure = error

        def settle() -> None:
            self._under_way -= 1
            if result.done():
                return
            if failure is None:
                result.set_result(value)
            else:
                result.set_exception(failure)

        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop ended: nobody awaits any more
