"""Attest calls that run step by step together: each has its own outcome, and none waits for more than its turn."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from datetime import UTC, datetime

from confcom.errors import ConfcomError
from confcom.services.attestation.attestation_store import AuditRecord
from confcom.services.attestation.lockstep import LOCKSTEP, Lockstep, Outcome, Steps
from confcom.tokens.azure import AttestationType

RECORD = AuditRecord(datetime(2026, 11, 30, tzinfo=UTC), AttestationType.SGX_ENCLAVE, "", "accepted", "", "", "", "")


def _answer(found: Outcome, awaited: asyncio.Future[Outcome]) -> None:
    awaited.set_result(found)


def _call(name: str, seen: list[str], *, fails_at: int = 9) -> Steps:
    for step in range(3):
        if step == fails_at:
            raise ConfcomError(name)
        seen.append(f"{name}{step}")
        yield
    return RECORD, name


async def test_each_step_is_taken_for_all_before_the_next() -> None:
    lockstep, seen = Lockstep(_answer), list[str]()
    calls = [lockstep.run(_call("a", seen)), lockstep.run(_call("b", seen, fails_at=1)), lockstep.run(_call("c", seen))]
    first, failed, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last) == ((RECORD, "a"), (RECORD, "c"))
    assert isinstance(failed, ConfcomError)
    assert failed.message == "b"
    assert seen == ["a0", "b0", "c0", "a1", "c1", "a2", "c2"]


async def test_several_calls_wait_while_further_ones_come_in_each_turn() -> None:
    lockstep, seen = Lockstep(_answer), list[str]()
    calls = [lockstep.run(_call("a", seen)), lockstep.run(_call("b", seen))]
    await asyncio.sleep(0)
    calls.append(lockstep.run(_call("c", seen)))
    await asyncio.gather(*calls)
    assert seen == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_a_call_that_is_alone_does_not_wait() -> None:
    lockstep, seen = Lockstep(_answer), list[str]()
    alone = lockstep.run(_call("a", seen))
    await asyncio.sleep(0)
    assert seen == ["a0", "a1", "a2"]
    await alone


async def test_others_of_the_event_loop_have_a_turn_after_some_calls() -> None:
    lockstep, seen = Lockstep(_answer), list[str]()
    calls = [lockstep.run(_call(f"{number}.", seen)) for number in range(2 * LOCKSTEP + 1)]
    asyncio.get_running_loop().call_soon(seen.append, "another")
    outcomes: list[Outcome] = await asyncio.gather(*calls)
    assert [token for _, token in outcomes] == [f"{number}." for number in range(2 * LOCKSTEP + 1)]
    assert seen.index("another") == 3 * LOCKSTEP
    assert await lockstep.run(_call("later", seen)) == (RECORD, "later")


async def test_a_caller_that_left_stops_its_call_alone() -> None:
    lockstep, seen = Lockstep(_answer), list[str]()
    gone, stays = lockstep.run(_call("gone", seen)), lockstep.run(_call("stays", seen))
    gone.cancel()
    assert await stays == (RECORD, "stays")
    assert seen == ["gone0", "stays0", "stays1", "stays2"]


async def test_an_error_is_freed_with_its_call() -> None:
    """With the evidence that its frames hold, and not at some garbage collection."""
    lockstep, errors = Lockstep(_answer), list[weakref.ref[BaseException]]()
    places: list[str] = []

    async def ask() -> None:
        try:  # pytest.raises would hold it
            await lockstep.run(_call("refused", [], fails_at=2))
        except ConfcomError as error:
            errors.append(weakref.ref(error))
            places.extend(entry.name for entry in traceback.extract_tb(error.__traceback__))

    gc.collect()
    gc.disable()
    try:
        await ask()
        await asyncio.sleep(0)
        assert errors[0]() is None
        assert places == ["ask", "_call"]
    finally:
        gc.enable()
