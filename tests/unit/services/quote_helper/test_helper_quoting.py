"""The platform's thread has its next call at hand, and no call is answered after its client gave up."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from aesm_wire import KEY_ID
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.interface import QuoteResult
from confcom.protocols.aesm_messages import GetQuoteExRequest
from confcom.protocols.aesm_status import AesmStatus
from confcom.services.quote_helper.broker import AesmBroker, Answer, PlatformCall
from confcom.services.quote_helper.connection import Conversation, PendingRequest
from confcom.services.quote_helper.helper_quoting import ThreadQuoting
from confcom.services.quote_helper.peers import FairQueue, Peer
from recording_platform import RecordingPlatform

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


def pending(broker: AesmBroker, client: socket.socket, since: float) -> PendingRequest:
    plan = broker.plan(REQUEST)
    assert isinstance(plan, PlatformCall)
    return PendingRequest(Conversation(client, Peer("uid 1", 1, since), bytes(12), 4096, since), plan, since)


async def test_the_thread_makes_the_next_call_while_the_loop_is_busy(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    platform = SlowPlatform()
    broker = AesmBroker(platform)
    answers: list[Answer] = []
    queue: FairQueue[PendingRequest] = FairQueue()
    loop = asyncio.get_running_loop()
    quoting = ThreadQuoting(broker, queue, lambda one, answer, duration=None: answers.append(answer), answer_timeout=60)
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
    queue: FairQueue[PendingRequest] = FairQueue()
    quoting = ThreadQuoting(
        broker, queue, lambda one, answer, duration=None: answered.set_result(answer), answer_timeout=1000
    )
    queue.push("uid 1", pending(broker, ends[0], asyncio.get_running_loop().time() - 1000))
    quoting.pump()
    answer = await asyncio.wait_for(answered, 60)
    platform.go_on.set()
    quoting.close()

    assert answer.response.status is AesmStatus.BUSY
