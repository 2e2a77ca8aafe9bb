"""One thread for the calls of one platform, which block and must not overlap, and the way there from an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from confcom.errors import PlatformBusy

_Result = TypeVar("_Result")


def _always() -> bool:
    return True


class PlatformThread:
    """Runs blocking calls one after the other, in the order in which they came.

    `max_waiting` calls may wait or run; one more is refused at once. A caller waits `answer_timeout` seconds at
    most. Both are told with `PlatformBusy`. The thread is a daemon: a call that never returns cannot keep the process
    from ending.
    """

    def __init__(self, *, max_waiting: int, answer_timeout: float) -> None:
        self._max_waiting = max_waiting
        self._answer_timeout = answer_timeout
        self._waiting = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="platform", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many calls wait or run."""
        return self._waiting

    async def run(self, call: Callable[[], _Result], *, wanted: Callable[[], bool] = _always) -> _Result:
        """Run a call there and return what it returns or raise what it raises.

        A call whose turn comes when nobody waits for it any more, or when `wanted` says no, is dropped.
        """
        if self._waiting >= self._max_waiting:
            raise PlatformBusy(f"{self._waiting} requests wait for the platform already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._waiting += 1
        self._jobs.put(lambda: self._run_one(loop, future, call, wanted))
        try:
            async with asyncio.timeout(self._answer_timeout):
                return await future
        except TimeoutError as error:
            raise PlatformBusy(f"the platform did not answer within {self._answer_timeout:g} s") from error

    def close(self) -> None:
        """Let the thread end after what is queued; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run_one(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[_Result],
        call: Callable[[], _Result],
        wanted: Callable[[], bool],
    ) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            if future.done() or not wanted():
                failure = PlatformBusy("the client left before its turn")
            else:
                result = call()
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, and the thread must live on
            failure = error
        # The loop may have ended meanwhile; nobody is left to tell then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._deliver, future, result, failure)

    def _deliver(self, future: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
        self._waiting -= 1
        if future.done():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)
