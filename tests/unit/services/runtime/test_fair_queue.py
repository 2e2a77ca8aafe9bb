"""Owners take turns; who fills the queue pays for it."""

from __future__ import annotations

import pytest

from confcom.services.runtime.listener import FairQueue


@pytest.fixture
def queue() -> FairQueue[str]:
    return FairQueue()


def fill(queue: FairQueue[str], *items: str, limit: int = 100) -> list[str | None]:
    return [queue.push(item[0], item, limit=limit) for item in items]


def drain(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_owners_take_turns_and_each_ones_items_stay_in_order(queue: FairQueue[str]) -> None:
    fill(queue, "a1", "a2", "a3", "a4", "b1", "c1", "c2")

    assert drain(queue) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]
    assert len(queue) == 0


def test_a_latecomer_is_next_but_for_one_turn_of_each_other(queue: FairQueue[str]) -> None:
    fill(queue, "a1", "a2", "a3")
    assert queue.pop() == "a1"
    fill(queue, "b1")

    assert drain(queue) == ["a2", "b1", "a3"]


def test_beyond_the_limit_the_newest_of_the_greediest_leaves(queue: FairQueue[str]) -> None:
    assert fill(queue, "a1", "a2", "a3", limit=3) == [None] * 3
    assert queue.push("a", "a4", limit=3) == "a4"
    assert queue.push("b", "b1", limit=3) == "a3"
    assert queue.push("b", "b2", limit=3) == "b2"

    assert drain(queue) == ["a1", "b1", "a2"]


def test_without_any_room_the_newcomer_leaves(queue: FairQueue[str]) -> None:
    assert queue.push("a", "a1", limit=0) == "a1"
    assert len(queue) == 0


def test_items_can_be_taken_out_wherever_they_are(queue: FairQueue[str]) -> None:
    fill(queue, "a1", "a2", "b1", "b2", "c1")

    assert sorted(queue.remove_if(lambda item: item.endswith("1"))) == ["a1", "b1", "c1"]
    assert len(queue) == 2
    assert drain(queue) == ["a2", "b2"]
