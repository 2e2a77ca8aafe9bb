"""Two ways to have the platform answer pending requests.

`QuickQuoting` is for a platform that takes microseconds, as the simulated one: the event loop makes the quote itself.
`AheadQuoting` is for the one platform of a real machine: a call takes milliseconds or seconds and must not overlap with
another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import structlog

from confcom.errors import PlatformBusy, PlatformError
from confcom.services.quote_helper.broker import AesmBroker, Answer, PlatformCall
from confcom.services.quote_helper.connection import Conversation
from confcom.services.quote_helper.peers import Peers
from confcom.services.runtime.listener import FairQueue
from confcom.services.runtime.process import Overloaded, WorkerThreads

Result = TypeVar("Result")

TURN = 16
"""Most requests answered before new connections are accepted, while one peer asks. With 4 instead, a quote takes a
tenth more processor time."""
SHARED_TURN = 4
"""The same while several peers ask: so many requests of a flood may come before the next one of another peer."""
AHEAD = 2
"""Most calls that are sent to the platform at a time: the current one and the next."""
HANGS_AFTER = 6.0
"""Seconds after which a process without an answer counts as hung; a quote takes milliseconds."""
LEFT_AFTER = 0.02
"""Seconds of waiting after which the client may have left: looked up before the quote is made."""


Deliver: TypeAlias = Callable[[Conversation, Answer, float | None], None]
"""Takes an answer to a pending request, and the seconds that the platform took (None: it was not asked)."""


@dataclass(slots=True, eq=False)
class Begun:
    """A request that was sent to the platform's process. `pending` is None once its client got BUSY."""

    call: PlatformCall
    pending: Conversation | None
    at: float


class AheadQuoting:
    """Sends one platform its next call before the current one ends.

    Where the platform offers it, the event loop sends requests for quotes to the platform's own process, and reads the
    answers. All other calls, and quotes for which that process gave no answer, are a thread's.
    """

    def __init__(
        self, broker: AesmBroker, queue: FairQueue[Conversation], deliver: Deliver, *, answer_timeout: float
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._answer_timeout = answer_timeout
        self._loop = asyncio.get_running_loop()
        self._thread = WorkerThreads("platform", threads=1, max_waiting=AHEAD)  # one more, for the warm-up
        self._calls: set[asyncio.Task[None]] = set()
        self._begun: deque[Begun] = deque()
        self._again: deque[Conversation] = deque()
        self._watched = -1

    @property
    def in_hand(self) -> int:
        """How many requests have left the queue and have no answer yet: none to two."""
        return len(self._calls) + len(self._begun) + len(self._again)

    async def warm_up(self) -> None:
        """Have the attestation key made; raises what the platform raises."""
        while self._begun:
            await asyncio.sleep(LEFT_AFTER)
        try:
            await self._run(self._broker.warm_up, time.monotonic() + self._answer_timeout)
        finally:
            self.pump()

    def pump(self) -> None:
        """Give the platform its next calls; a call that timed out still occupies it.

        To be called whenever the queue or the platform may have changed.
        """
        if self._begun:
            self._check_deadlines()
        while self._queue and not self._again and self._begin(self._queue.peek()):
            pass
        while not self._begun and max(len(self._calls), self._thread.under_way) < AHEAD:
            if self._again:
                pending = self._again.popleft()
            elif not self._queue or (self._calls and self._broker.may_begin(self._queue.peek().call)):
                return  # it is begun once the thread is done, which a full queue would otherwise keep busy for ever
            else:
                pending = self._queue.pop()
            self._calls.add(self._loop.create_task(self._perform(pending)))

    def close(self) -> None:
        """End the thread after its call; in-flight requests are dropped."""
        self._watch(-1)
        for call in self._calls:
            call.cancel()
        self._thread.close(0)

    def _begin(self, pending: Conversation) -> bool:
        """Send the queue's first request to the platform, or refuse it if its client left; False if it stays queued."""
        if self._calls or self._thread.under_way or len(self._begun) >= AHEAD:
            return False
        now = time.monotonic()
        if now - pending.since > LEFT_AFTER and not pending.is_wanted():
            self._queue.pop()
            self._deliver(pending, _left(self._broker, pending), None)
            return True
        descriptor = self._broker.begin(pending.call)
        if descriptor < 0:
            return False
        self._begun.append(Begun(pending.call, self._queue.pop(), now))
        if descriptor != self._watched:
            self._watch(descriptor)
        return True

    def _watch(self, descriptor: int) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
        self._watched = descriptor
        if descriptor >= 0:
            self._loop.add_reader(descriptor, self._end)

    def _end(self) -> None:
        """Deliver the answer to the first request that was begun; without one, have all of them performed again."""
        call = self._begun[0].call if self._begun else None
        answer = None if call is None else _guarded(self._broker, call, self._broker.end)
        if answer is None:
            self._watch(-1)
            self._again.extend(begun.pending for begun in self._begun if begun.pending is not None)
            self._begun.clear()
        else:
            now, begun = time.monotonic(), self._begun.popleft()
            if self._begun:
                self._begun[0].at = now
            if begun.pending is not None:
                self._deliver(begun.pending, answer, now - begun.at)
        self.pump()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for begun in self._begun:
            if begun.pending is not None and begun.pending.since + self._answer_timeout <= now:
                self._deliver(begun.pending, self._broker.refuse(begun.call.request, self._late()), None)
                begun.pending = None
        if now - self._begun[0].at > HANGS_AFTER:
            self._end()

    async def _perform(self, pending: Conversation) -> None:
        started = None

        def call() -> Answer:
            nonlocal started
            started = time.monotonic()
            return _answer(self._broker, pending)

        try:
            answer = await self._run(call, pending.since + self._answer_timeout)
        except PlatformBusy as error:
            answer = self._broker.refuse(pending.call.request, error)
        self._calls.remove(cast("asyncio.Task[None]", asyncio.current_task()))
        self._deliver(pending, answer, None if started is None else time.monotonic() - started)
        self.pump()

    async def _run(self, call: Callable[[], Result], deadline: float) -> Result:
        # The thread may replace the process; the number of its descriptor then belongs to another file.
        self._watch(-1)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._thread.run(call)
        except TimeoutError as error:
            raise self._late() from error
        except Overloaded:
            raise PlatformBusy("an earlier request holds the platform") from None

    def _late(self) -> PlatformBusy:
        return PlatformBusy(f"the platform did not answer within {self._answer_timeout:g} s")


class QuickQuoting:
    """The event loop quotes itself."""

    def __init__(self, broker: AesmBroker, queue: FairQueue[Conversation], deliver: Deliver, peers: Peers) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._again = False

    in_hand = 0
    """What leaves the queue is answered in the same turn."""

    async def warm_up(self) -> None:
        """Have the attestation key made."""
        self._broker.warm_up()

    def pump(self) -> None:
        """Answer some requests, and come back for the others."""
        queue, now = self._queue, time.monotonic
        # All are signed before the first is sent: so the code of each step stays in the processor's caches.
        signed = []
        started = now()
        most = SHARED_TURN if self._peers.several else TURN
        for pending in [queue.pop() for _ in range(min(most, len(queue)))]:
            answer = _answer(self._broker, pending, look=started - pending.since > LEFT_AFTER)
            ended = now()
            signed.append((pending, answer, ended - started))
            started = ended
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


def _left(broker: AesmBroker, pending: Conversation) -> Answer:
    return broker.refuse(pending.call.request, PlatformBusy("the client left before its turn"))


def _answer(broker: AesmBroker, pending: Conversation, *, look: bool = True) -> Answer:
    """Have the platform answer. With `look`, a client that left gets no quote."""
    if look and not pending.is_wanted():
        return _left(broker, pending)
    return _guarded(broker, pending.call, broker.perform)


def _guarded(broker: AesmBroker, call: PlatformCall, make: Callable[[PlatformCall], Result]) -> Result | Answer:
    """The answer that is made of a call; a mistake of ours must not leave the client without one."""
    try:
        return make(call)
    except Exception as error:  # noqa: BLE001 - whatever the mistake is
        structlog.get_logger().exception("aesm.failure", kind=type(call.request).__name__)
        return broker.refuse(call.request, PlatformError(f"{type(error).__name__}: {error}"))
