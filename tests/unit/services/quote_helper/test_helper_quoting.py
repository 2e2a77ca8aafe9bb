"""The platform has its next call at hand, and no call is answered after its client gave up."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aesm_wire import KEY_ID
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.interface import QuoteResult
from confcom.protocols.aesm import GetQuoteExRequest, GetQuoteExResponse, GetQuoteSizeExRequest, Request
from confcom.protocols.aesm_status import AesmStatus
from confcom.services.quote_helper.broker import AesmBroker, Answer, PlatformCall
from confcom.services.quote_helper.connection import Conversation
from confcom.services.quote_helper.helper_quoting import HANGS_AFTER, SHARED_TURN, TURN, AheadQuoting, QuickQuoting
from confcom.services.quote_helper.peers import Peer, Peers
from confcom.services.runtime.listener import FairQueue
from recording_platform import RecordingPlatform, quote_over

REQUEST = GetQuoteExRequest(bytes(432), 8192, KEY_ID)


class SlowPlatform(RecordingPlatform):
    """Waits in `quote` until it may go on, and tells when two quotes have been made."""

    def __init__(self) -> None:
        super().__init__(initialized=True)
        self.go_on = threading.Event()
        self.second = threading.Event()
        self.made = 0

    def quote(
        self, report: Report, key_id: AttestationKeyId | None = None, qe_report_info: QeReportInfo | None = None
    ) -> QuoteResult:
        assert self.go_on.wait(60)
        self.made += 1
        if self.made == 2:
            self.second.set()
        return super().quote(report, key_id, qe_report_info)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def pending(broker: AesmBroker, client: socket.socket, since: float, request: Request = REQUEST) -> Conversation:
    plan = broker.plan(request)
    assert isinstance(plan, PlatformCall)
    made = Conversation(client, Peer("uid 1", 1, since), bytes(12), 4096, since)
    made.call, made.since = plan, since
    return made


async def test_the_thread_makes_the_next_call_while_the_loop_is_busy(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    platform = SlowPlatform()
    broker = AesmBroker(platform)
    answers: list[Answer] = []
    queue: FairQueue[Conversation] = FairQueue()
    loop = asyncio.get_running_loop()
    quoting = AheadQuoting(broker, queue, lambda one, answer, duration=None: answers.append(answer), answer_timeout=60)
    for _ in range(3):
        queue.push("uid 1", pending(broker, ends[0], loop.time()))
    quoting.pump()
    await asyncio.sleep(0)
    assert (quoting.in_hand, len(queue)) == (2, 1)  # the third may still be displaced
    platform.go_on.set()
    assert platform.second.wait(60)  # and meanwhile this loop does nothing
    while len(answers) < 3:
        await asyncio.sleep(0.001)
    quoting.close()

    assert [answer.response.status for answer in answers] == [AesmStatus.SUCCESS] * 3


async def test_the_time_in_the_queue_counts(ends: tuple[socket.socket, socket.socket]) -> None:
    """A client gives up after 15 s, wherever its request waited."""
    platform = SlowPlatform()
    broker = AesmBroker(platform)
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    queue: FairQueue[Conversation] = FairQueue()
    quoting = AheadQuoting(
        broker, queue, lambda one, answer, duration=None: answered.set_result(answer), answer_timeout=1000
    )
    queue.push("uid 1", pending(broker, ends[0], asyncio.get_running_loop().time() - 1000))
    quoting.pump()
    answer = await asyncio.wait_for(answered, 60)
    platform.go_on.set()
    quoting.close()

    assert answer.response.status is AesmStatus.BUSY


class AheadPlatform(RecordingPlatform):
    """Takes requests ahead; the test answers them."""

    def __init__(self) -> None:
        super().__init__(initialized=True)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.begun: list[bytes] = []

    def begin_quote(self, report: bytes, key_id: bytes, qe_report_info: bytes | None) -> int:
        self.begun.append(report)
        return self.ours.fileno()

    def end_quote(self) -> QuoteResult | None:
        try:
            answer = self.ours.recv(1)
        except BlockingIOError:
            return None
        if answer == b"!":
            raise ValueError(f"a mistake over {self.begun.pop(0)[:1]!r}")
        if answer != b"+":
            self.begun.clear()
            return None
        return QuoteResult(quote_over(Report.parse(self.begun.pop(0))))


@dataclass
class Stage:
    """Quoting over a platform that takes requests ahead, the queue before it and what it delivered."""

    platform: AheadPlatform
    queue: FairQueue[Conversation]
    quoting: AheadQuoting
    answers: list[tuple[Conversation, Answer]]
    client: socket.socket
    broker: AesmBroker

    def ask(self, number: int, since: float = 0.0) -> Conversation:
        """Queue a request over a report of such bytes and have it begun."""
        request = GetQuoteExRequest(bytes([number]) * 432, 8192, KEY_ID)
        asked = pending(self.broker, self.client, since or asyncio.get_running_loop().time(), request)
        self.queue.push("uid 1", asked)
        self.quoting.pump()
        return asked

    async def answered(self, count: int) -> list[bytes]:
        """Wait for so many answers; the first byte of the report in each, or the status of a refusal."""
        async with asyncio.timeout(60):
            while len(self.answers) < count:
                await asyncio.sleep(0.001)
        return [_shown(answer) for _, answer in self.answers]


def _shown(answer: Answer) -> bytes:
    response = answer.response
    quote = response.quote if isinstance(response, GetQuoteExResponse) else None
    return quote[48:49] if quote else bytes([response.status])


@pytest.fixture
async def stage(ends: tuple[socket.socket, socket.socket]) -> AsyncIterator[Stage]:
    platform, queue, answers = AheadPlatform(), FairQueue[Conversation](), []  # type: ignore[var-annotated]
    broker = AesmBroker(platform)
    quoting = AheadQuoting(broker, queue, lambda one, answer, duration=None: answers.append((one, answer)),
                           answer_timeout=100)  # fmt: skip
    made = Stage(platform, queue, quoting, answers, ends[0], broker)
    made.broker.warm_up()
    made.ask(0)  # in the thread: the size of a quote is not known yet
    assert await made.answered(1) == [b"\0"]
    assert platform.begun == []
    yield made
    quoting.close()
    platform.ours.close()
    platform.theirs.close()


async def test_two_requests_are_at_the_platform_and_the_rest_waits_its_turn(stage: Stage) -> None:
    for number in (1, 2, 3):
        stage.ask(number)
    assert (stage.quoting.in_hand, len(stage.queue)) == (2, 1)
    stage.platform.theirs.send(b"+")
    assert await stage.answered(2) == [b"\0", b"\1"]
    assert (stage.quoting.in_hand, len(stage.queue)) == (2, 0)
    stage.platform.theirs.send(b"+")
    stage.platform.theirs.send(b"+")
    assert await stage.answered(4) == [b"\0", b"\1", b"\2", b"\3"]
    assert stage.platform.asked.count("quote") == 1  # the first one alone


async def test_nothing_is_begun_beside_a_call_of_the_thread(stage: Stage) -> None:
    """Both read answers from one process."""
    size = pending(stage.broker, stage.client, asyncio.get_running_loop().time(), GetQuoteSizeExRequest(KEY_ID))
    stage.queue.push("uid 1", size)
    stage.quoting.pump()
    stage.ask(1)
    assert stage.platform.begun == []
    await stage.answered(2)
    assert stage.answers[1][0] is size


async def test_a_full_queue_goes_back_from_the_thread_to_the_process(stage: Stage) -> None:
    """Else one call of the thread would slow down all quotes until the queue is empty for once."""
    now = asyncio.get_running_loop().time()
    stage.queue.push("uid 1", pending(stage.broker, stage.client, now, GetQuoteSizeExRequest(KEY_ID)))
    for number in (1, 2, 3):
        stage.ask(number)
    await stage.answered(2)
    assert [report[0] for report in stage.platform.begun] == [1, 2]
    for _ in range(3):
        stage.platform.theirs.send(b"+")
    assert (await stage.answered(5))[2:] == [b"\1", b"\2", b"\3"]
    assert stage.platform.asked.count("quote") == 1  # the first one alone


async def test_a_new_channel_with_the_number_of_the_old_one_is_watched(stage: Stage) -> None:
    """The thread may replace the platform's process, and the new channel may get the number of the old one."""
    stage.ask(1)
    stage.platform.theirs.send(b"+")
    assert await stage.answered(2) == [b"\0", b"\1"]
    now = asyncio.get_running_loop().time()
    stage.queue.push("uid 1", pending(stage.broker, stage.client, now, GetQuoteSizeExRequest(KEY_ID)))
    stage.quoting.pump()
    await asyncio.sleep(0)  # the call is the thread's now
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, stage.platform.theirs:
        os.dup2(ours.fileno(), stage.platform.ours.fileno())
    stage.platform.ours.setblocking(False)
    stage.platform.theirs = theirs
    await stage.answered(3)
    stage.ask(2)
    stage.platform.theirs.send(b"+")
    assert (await stage.answered(4))[-1] == b"\2"


async def test_what_was_begun_in_vain_is_performed_before_the_rest(stage: Stage) -> None:
    for number in (1, 2, 3):
        stage.ask(number)
    stage.platform.theirs.send(b"-")
    assert await stage.answered(3) == [b"\0", b"\1", b"\2"]
    stage.platform.theirs.send(b"+")
    assert await stage.answered(4) == [b"\0", b"\1", b"\2", b"\3"]
    assert stage.platform.asked.count("quote") == 3  # the last one was begun


async def test_a_platform_that_hangs_is_given_up_and_its_request_performed(stage: Stage) -> None:
    stage.ask(1)
    stage.quoting._begun[0].at -= HANGS_AFTER + 1
    stage.quoting.pump()
    assert await stage.answered(2) == [b"\0", b"\1"]
    assert stage.platform.asked.count("quote") == 2


async def test_a_process_that_ends_with_nothing_to_answer_is_not_watched_any_more(stage: Stage) -> None:
    """Its end stays readable: the event loop would turn without rest."""
    stage.ask(1)
    stage.platform.theirs.send(b"+")
    assert await stage.answered(2) == [b"\0", b"\1"]
    stage.platform.theirs.close()
    await asyncio.sleep(0.05)
    assert not asyncio.get_running_loop().remove_reader(stage.platform.ours)


async def test_a_mistake_is_the_answer_to_its_request_alone(stage: Stage) -> None:
    """Else the next answer would be delivered to the wrong client."""
    for number in (1, 2):
        stage.ask(number)
    stage.platform.theirs.send(b"!")
    stage.platform.theirs.send(b"+")
    assert await stage.answered(3) == [b"\0", bytes([AesmStatus.UNEXPECTED_ERROR]), b"\2"]


async def test_a_request_without_answer_in_its_time_is_busy_once(stage: Stage) -> None:
    late = stage.ask(1, since=asyncio.get_running_loop().time() - 99.9)
    stage.ask(2)
    while len(stage.answers) < 2:
        await asyncio.sleep(0.05)
        stage.quoting.pump()
    assert stage.answers[1][0] is late
    assert stage.answers[1][1].response.status is AesmStatus.BUSY
    stage.platform.theirs.send(b"+")
    stage.platform.theirs.send(b"+")
    assert await stage.answered(3) == [b"\0", bytes([AesmStatus.BUSY]), b"\2"]


async def test_a_client_that_left_has_no_quote_made(stage: Stage, ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    stage.ask(1, since=asyncio.get_running_loop().time() - 1)
    assert await stage.answered(2) == [b"\0", bytes([AesmStatus.BUSY])]
    assert stage.platform.begun == []


@pytest.mark.parametrize(("several", "turn"), [(True, SHARED_TURN), (False, TURN)])
async def test_a_turn_is_short_while_several_peers_ask(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, *, several: bool, turn: int
) -> None:
    """Who asks again in a flood waits for the rest of one turn, and is then among the first of the next."""
    broker = AesmBroker(RecordingPlatform(initialized=True))
    broker.warm_up()
    queue: FairQueue[Conversation] = FairQueue()
    answered: list[Conversation] = []
    peers = Peers(tmp_path, max_connections=256, rate=0, burst=1, monotonic=time.monotonic)
    peers.several = several
    quoting = QuickQuoting(broker, queue, lambda one, answer, duration=None: answered.append(one), peers)
    flood = [pending(broker, ends[0], time.monotonic()) for _ in range(100)]
    good = pending(broker, ends[0], time.monotonic())
    for one in flood:
        queue.push("uid 1", one)
    quoting.pump()
    assert answered == flood[:turn]
    queue.push("uid 2", good)
    quoting.pump()
    assert answered[turn : turn + 2] == [flood[turn], good]
    assert len(answered) == 2 * turn
    peers.close()
