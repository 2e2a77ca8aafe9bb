"""Calls in threads: their results, their failures, and the end of the queue."""

from __future__ import annotations

import asyncio
import threading

import pytest

from confcom.services.runtime.process import Overloaded, WorkerThreads


async def test_gives_results_and_failures() -> None:
    workers = WorkerThreads("test", threads=2, max_waiting=8)

    assert await asyncio.gather(*(workers.run(lambda number=number: number * 2) for number in range(5))) == [
        0, 2, 4, 6, 8
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0)
    workers.close()


async def test_refuses_more_than_may_wait_and_recovers() -> None:
    workers, gate = WorkerThreads("test", threads=1, max_waiting=1), threading.Event()
    calls = [asyncio.create_task(workers.run(lambda: gate.wait(60))) for _ in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await workers.run(lambda: None)
    gate.set()
    assert await asyncio.gather(*calls) == [True, True]
    assert await workers.run(lambda: "again") == "again"
    workers.close()


async def test_who_leaves_leaves_room() -> None:
    workers, gate = WorkerThreads("test", threads=1, max_waiting=0), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await workers.run(lambda: gate.wait(60))
    gate.set()
    async with asyncio.timeout(60):
        while True:
            try:
                assert await workers.run(lambda: 1) == 1
                break
            except Overloaded:
                await asyncio.sleep(0.01)
    workers.close()


async def test_a_call_without_a_caller_is_dropped() -> None:
    workers, gate, made = WorkerThreads("test", threads=1, max_waiting=1), threading.Event(), list[str]()
    first = asyncio.create_task(workers.run(lambda: gate.wait(60)))
    late = asyncio.create_task(workers.run(lambda: made.append("late")))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    gate.set()
    assert await first
    while workers.under_way:
        await asyncio.sleep(0.001)

    assert made == []
    workers.close()


async def test_owners_take_turns_and_the_one_that_fills_the_queue_makes_room() -> None:
    workers, gate, made = WorkerThreads("test", threads=1, max_waiting=3), threading.Event(), list[str]()

    def ask(owner: str) -> asyncio.Task[None]:
        return asyncio.create_task(workers.run(lambda: made.append(owner), owner))

    begun = threading.Event()
    busy = asyncio.create_task(workers.run(lambda: (begun.set(), gate.wait(60)), "many"))
    await asyncio.to_thread(begun.wait, 60)
    many = [ask("many") for _ in range(3)]
    few = ask("few")
    await asyncio.wait([many[2]], timeout=60)
    gate.set()
    await asyncio.gather(busy, few, *many[:2])

    with pytest.raises(Overloaded):
        many[2].result()
    assert made == ["many", "few", "many"]
    assert await workers.run(lambda: "again", "many") == "again"
    workers.close()
