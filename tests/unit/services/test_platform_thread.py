from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from confcom.errors import KeyNotInitialized, PlatformBusy
from confcom.services.platform_thread import PlatformThread


class Gate:
    """A call that holds the thread until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.opened.wait(10)
        return "through"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def thread_of(*, max_waiting: int = 8, answer_timeout: float = 10.0) -> PlatformThread:
    return PlatformThread(max_waiting=max_waiting, answer_timeout=answer_timeout)


async def test_gives_back_what_the_call_returns_or_raises() -> None:
    thread = thread_of()

    def fail() -> None:
        raise KeyNotInitialized("no key")

    assert await thread.run(lambda: 5) == 5
    with pytest.raises(KeyNotInitialized):
        await thread.run(fail)
    assert await thread.run(lambda: 6) == 6
    thread.close()


async def test_calls_never_overlap_and_keep_their_order() -> None:
    thread = thread_of(max_waiting=50)
    running, order = 0, []

    def call(number: int) -> None:
        nonlocal running
        running += 1
        assert running == 1
        order.append(number)
        running -= 1

    await asyncio.gather(*(thread.run(lambda number=number: call(number)) for number in range(50)))

    assert order == list(range(50))
    thread.close()


async def test_one_more_than_may_wait_is_busy_at_once(gate: Gate) -> None:
    thread = thread_of(max_waiting=2)
    waiting = [asyncio.ensure_future(thread.run(gate)) for _ in range(2)]
    await asyncio.to_thread(gate.entered.wait)

    with pytest.raises(PlatformBusy, match="2 requests wait"):
        await thread.run(lambda: None)
    gate.opened.set()
    assert await asyncio.gather(*waiting) == ["through", "through"]
    assert await thread.run(lambda: "room again") == "room again"
    thread.close()


async def test_a_call_that_takes_too_long_is_busy_and_its_place_stays_taken(gate: Gate) -> None:
    thread = thread_of(max_waiting=1, answer_timeout=0.05)

    with pytest.raises(PlatformBusy, match=r"within 0\.05 s"):
        await thread.run(gate)
    with pytest.raises(PlatformBusy, match="1 requests wait"):
        await thread.run(lambda: None)
    gate.opened.set()
    while thread.waiting:
        await asyncio.sleep(0.001)
    assert await thread.run(lambda: "again") == "again"
    thread.close()


async def test_work_that_nobody_waits_for_any_more_is_dropped(gate: Gate) -> None:
    thread = thread_of(answer_timeout=0.05)
    made: list[str] = []
    first = asyncio.ensure_future(thread.run(gate))
    late = asyncio.ensure_future(thread.run(lambda: made.append("late")))
    unwanted = asyncio.ensure_future(thread.run(lambda: made.append("unwanted"), wanted=lambda: False))
    results = await asyncio.gather(first, late, unwanted, return_exceptions=True)
    gate.opened.set()
    while thread.waiting:
        await asyncio.sleep(0.001)

    assert [type(result) for result in results] == [PlatformBusy] * 3
    assert made == []
    thread.close()


async def test_a_client_that_left_before_its_turn_costs_no_call() -> None:
    thread = thread_of()
    made: list[str] = []

    with pytest.raises(PlatformBusy, match="left before its turn"):
        await thread.run(lambda: made.append("made"), wanted=lambda: False)
    assert made == []
    thread.close()
