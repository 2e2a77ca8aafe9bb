"""Two ways to have the platform answer what waits for it.

`QuickQuoting` is for platforms that take microseconds and of which there may be several, as the simulated one: the
helper's own process makes the quote on the spot, which is the fastest way for a single client, and passes on what
waits beyond that to its workers. `ThreadQuoting` is for the one platform of a real machine: a call blocks for
milliseconds or seconds and must not overlap with another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from confcom.errors import ConfcomError, PlatformBusy, PlatformError
from confcom.services.aesm_broker import AesmBroker, Answer
from confcom.services.fair_queue import FairQueue
from confcom.services.pending_request import PendingRequest
from confcom.services.platform_thread import PlatformThread
from confcom.services.quoting_worker import Reply, WorkerSettings
from confcom.services.quoting_workers import QuotingWorker

MAX_DEATHS = 3
"""Workers that may die over one request before it is refused: it could be the request that kills them."""
KEPT = 4
"""Requests that the helper's own process keeps for itself before it gives any to workers."""
TURN = 4
"""Requests that it answers before it looks for new connections again."""
LEFT_AFTER = 0.02
"""Seconds of waiting after which it is worth a look whether the client still does."""


class Deliver(Protocol):
    """Takes an answer to a pending request, and the seconds that the platform took (None: it was not asked)."""

    def __call__(self, pending: PendingRequest, answer: Answer | Reply, duration: float | None = None) -> None:
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

    def give_up(self, overdue: Callable[[PendingRequest], bool]) -> None:
        """Refuse what is overdue."""

    def close(self) -> None:
        """Stop; what is in hand is lost."""


class ThreadQuoting:
    """One platform behind one thread."""

    def __init__(
        self, broker: AesmBroker, queue: FairQueue[PendingRequest], deliver: Deliver, *, answer_timeout: float
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._thread = PlatformThread(max_waiting=2, answer_timeout=answer_timeout)
        self._task: asyncio.Task[None] | None = None

    @property
    def in_hand(self) -> int:
        """One or none."""
        return 0 if self._task is None else 1

    async def warm_up(self) -> None:
        """Have the attestation key made."""
        try:
            await self._thread.run(self._broker.warm_up)
        finally:
            self.pump()

    def pump(self) -> None:
        """Give the thread its next call, if it has none."""
        if self._task is None and self._queue and not self._thread.waiting:
            self._task = self._loop.create_task(self._perform(self._queue.pop()))

    def give_up(self, overdue: Callable[[PendingRequest], bool]) -> None:
        """The thread keeps the deadline of its call itself."""

    def close(self) -> None:
        """End the thread after its call."""
        if self._task is not None:
            self._task.cancel()
        self._thread.close()

    async def _perform(self, pending: PendingRequest) -> None:
        started = self._loop.time()
        call = pending.call
        try:
            perform = self._broker.perform
            answer = await self._thread.run(lambda: perform(call), wanted=pending.conversation.is_wanted)
        except PlatformBusy as error:
            answer = self._broker.refuse(call.request, error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the client without an answer
            structlog.get_logger().exception("aesm.failure", kind=type(call.request).__name__)
            answer = self._broker.refuse(call.request, PlatformError(f"{type(error).__name__}: {error}"))
        self._task = None
        self._deliver(pending, answer, self._loop.time() - started)
        self.pump()


class QuickQuoting:
    """The helper's own process, and workers beside it."""

    def __init__(
        self,
        broker: AesmBroker,
        queue: FairQueue[PendingRequest],
        deliver: Deliver,
        *,
        workers: int,
        settings: WorkerSettings,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._again = False
        self.workers: Sequence[QuotingWorker] = tuple(
            QuotingWorker(settings, self._replied, self._lost, self.pump) for _ in range(workers)
        )

    @property
    def in_hand(self) -> int:
        """What the workers have."""
        return sum(worker.busy for worker in self.workers)

    async def warm_up(self) -> None:
        """Have the attestation key made here, and let the workers make theirs."""
        self._broker.warm_up()
        await asyncio.gather(*(worker.first_try for worker in self.workers))

    def pump(self) -> None:
        """Give the workers what they can take, answer some requests here, and come back for the others.

        The last ones stay here even if a worker is free: passing them on would cost more than it gains.
        """
        queue = self._queue
        if len(queue) > KEPT:
            self._pass_on(queue)
        # All are signed before the first is sent: the processor then finds each piece of code warm.
        turn = [queue.pop() for _ in range(min(TURN, len(queue)))]
        for pending, answer, duration in [self._answer_here(pending) for pending in turn]:
            self._deliver(pending, answer, duration)
        if queue and not self._again:
            self._again = True
            self._loop.call_soon(self._pump_again)

    def give_up(self, overdue: Callable[[PendingRequest], bool]) -> None:
        """End workers that do not come back from a request."""
        for worker in self.workers:
            if worker.oldest is not None and overdue(worker.oldest):
                worker.kill()

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()

    def _pump_again(self) -> None:
        self._again = False
        self.pump()

    def _pass_on(self, queue: FairQueue[PendingRequest]) -> None:
        for worker in self.workers:
            while len(queue) > KEPT and worker.has_room:
                pending = queue.pop()
                if not worker.give(pending):
                    queue.push_back(pending.conversation.peer.name, pending)
                    break

    def _answer_here(self, pending: PendingRequest) -> tuple[PendingRequest, Answer, float | None]:
        started = self._loop.time()
        request = pending.call.request
        if started - pending.since > LEFT_AFTER and not pending.conversation.is_wanted():
            return pending, self._broker.refuse(request, PlatformBusy("the client left before its turn")), None
        try:
            answer = self._broker.perform(pending.call)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the client without an answer
            structlog.get_logger().exception("aesm.failure", kind=type(request).__name__)
            answer = self._broker.refuse(request, PlatformError(f"{type(error).__name__}: {error}"))
        return pending, answer, self._loop.time() - started

    def _replied(self, pending: PendingRequest, reply: Reply) -> None:
        self._deliver(pending, reply, reply.duration)

    def _lost(self, lost: list[PendingRequest]) -> None:
        for pending in reversed(lost):
            if pending.deaths >= MAX_DEATHS:
                error: ConfcomError = PlatformError(f"{MAX_DEATHS} quoting workers ended over this request")
                self._deliver(pending, self._broker.refuse(pending.call.request, error))
            else:
                self._queue.push_back(pending.conversation.peer.name, pending)
        self.pump()
