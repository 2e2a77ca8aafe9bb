"""Two ways to have the platform answer pending requests.

`QuickQuoting` is for a platform that takes microseconds, as the simulated one: the event loop makes the quote itself.
`ThreadQuoting` is for the one platform of a real machine: a call blocks for milliseconds or seconds and must not
overlap with another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import structlog

from confcom.errors import PlatformBusy, PlatformError
from confcom.services.quote_helper.broker import AesmBroker, Answer
from confcom.services.quote_helper.connection import PendingRequest
from confcom.services.quote_helper.peers import FairQueue
from confcom.services.runtime.process import Overloaded, WorkerThreads

Result = TypeVar("Result")

TURN = 4
"""Requests answered before new connections are accepted."""
AHEAD = 2
"""Calls that the thread has at most: the one that it makes, and the next one."""
LEFT_AFTER = 0.02
"""Seconds of waiting after which the client may have left: looked up before the quote is made."""


class Deliver(Protocol):
    """Takes an answer to a pending request, and the seconds that the platform took (None: it was not asked)."""

    def __call__(self, pending: PendingRequest, answer: Answer, duration: float | None = None) -> None:
        """Deliver."""


class Quoting(Protocol):
    """How pending requests get their answers."""

    @property
    def in_hand(self) -> int:
        """How many requests have left the queue and have no answer yet."""

    async def warm_up(self) -> None:
        """Have the attestation key made; raises what the platform raises."""

    def pump(self) -> None:
        """Begin what can be begun. Called whenever the queue or the platform may have changed."""

    def close(self) -> None:
        """Stop; in-flight requests are dropped."""


class ThreadQuoting:
    """One platform behind one thread, which has its next call before it is done with the present one."""

    def __init__(
        self, broker: AesmBroker, queue: FairQueue[PendingRequest], deliver: Deliver, *, answer_timeout: float
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._answer_timeout = answer_timeout
        self._loop = asyncio.get_running_loop()
        self._thread = WorkerThreads("platform", threads=1, max_waiting=AHEAD)  # one more, for the warm-up
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def in_hand(self) -> int:
        """None to two."""
        return len(self._calls)

    async def warm_up(self) -> None:
        """Have the attestation key made."""
        try:
            await self._run(self._broker.warm_up, self._loop.time() + self._answer_timeout)
        finally:
            self.pump()

    def pump(self) -> None:
        """Give the thread its next calls; a call that timed out still occupies it."""
        while self._queue and max(len(self._calls), self._thread.under_way) < AHEAD:
            self._calls.add(self._loop.create_task(self._perform(self._queue.pop())))

    def close(self) -> None:
        """End the thread after its call."""
        for call in self._calls:
            call.cancel()
        self._thread.close(0)

    async def _perform(self, pending: PendingRequest) -> None:
        started = None

        def call() -> Answer:
            nonlocal started
            started = self._loop.time()
            return _answer(self._broker, pending)

        try:
            answer = await self._run(call, pending.since + self._answer_timeout)
        except PlatformBusy as error:
            answer = self._broker.refuse(pending.call.request, error)
        self._calls.remove(cast("asyncio.Task[None]", asyncio.current_task()))
        self._deliver(pending, answer, None if started is None else self._loop.time() - started)
        self.pump()

    async def _run(self, call: Callable[[], Result], deadline: float) -> Result:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._thread.run(call)
        except TimeoutError as error:
            raise PlatformBusy(f"the platform did not answer within {self._answer_timeout:g} s") from error
        except Overloaded:
            raise PlatformBusy("an earlier request holds the platform") from None


class QuickQuoting:
    """The event loop quotes itself."""

    def __init__(self, broker: AesmBroker, queue: FairQueue[PendingRequest], deliver: Deliver) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._again = False

    in_hand = 0
    """What leaves the queue is answered in the same turn."""

    async def warm_up(self) -> None:
        """Have the attestation key made."""
        self._broker.warm_up()

    def pump(self) -> None:
        """Answer some requests, and come back for the others."""
        queue, now = self._queue, self._loop.time
        # All are signed before the first is sent, which keeps the processor's caches warm.
        signed = []
        for pending in [queue.pop() for _ in range(min(TURN, len(queue)))]:
            started = now()
            answer = _answer(self._broker, pending, look=started - pending.since > LEFT_AFTER)
            signed.append((pending, answer, now() - started))
        for pending, answer, duration in signed:
            self._deliver(pending, answer, duration)
        if queue and not self._again:
            self._again = True
            self._loop.call_soon(self._pump_again)

    def close(self) -> None:
        """There is nothing to end."""

    def _pump_again(self) -> None:
        self._again = False
        self.pump()


def _answer(broker: AesmBroker, pending: PendingRequest, *, look: bool = True) -> Answer:
    """Have the platform answer. With `look`, a client that left gets no quote."""
    request = pending.call.request
    if look and not pending.conversation.is_wanted():
        return broker.refuse(request, PlatformBusy("the client left before its turn"))
    try:
        return broker.perform(pending.call)
    except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the client without an answer
        structlog.get_logger().exception("aesm.failure", kind=type(request).__name__)
        return broker.refuse(request, PlatformError(f"{type(error).__name__}: {error}"))
