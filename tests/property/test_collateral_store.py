"""The store as its rule says, whatever the history: in any order, at any time, for every set."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from confcom.collateral.documents import Document, DocumentKey, read_document, take_apart
from confcom.collateral.store.rows import Candidate, choose
from confcom.collateral.store.store import CollateralStore
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SETS = ("standard", "early", 17, 18)

versions = st.lists(
    st.builds(
        lambda id_, number, issued, lasts, seen: Candidate(id_, number, issued, issued + lasts, seen),
        st.integers(1, 10**6),
        st.integers(17, 20),
        st.integers(0, 200),
        st.integers(1, 60),
        st.none() | st.integers(0, 300),
    ),
    max_size=12,
    unique_by=lambda version: version.id,
)
updates = st.sampled_from(["standard", "early", 17, 19, None])


@given(versions, st.integers(0, 300), updates, st.randoms())
def test_the_order_in_which_versions_came_does_not_matter(found, at, update, chance):
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert choose(found, at=at, update=update) == choose(shuffled, at=at, update=update)


@given(versions, st.integers(0, 300), updates)
def test_an_expired_version_is_given_only_where_none_is_valid(found, at, update):
    chosen = choose(found, at=at, update=update)
    if chosen is None or chosen.valid(at):
        return
    same = [v for v in found if v.number == chosen.number and (isinstance(update, int) or v.first_seen is not None)]
    assert not any(version.valid(at) for version in same)


@given(versions, st.integers(0, 300), st.integers(0, 300))
def test_the_standard_set_never_goes_back(found, earlier, later):
    # The versions that are known at a time decide its floor, and what is known only grows.
    earlier, later = sorted((earlier, later))
    known = [v.number for v in found if v.first_seen is not None and v.known_since() <= earlier]
    chosen = choose(found, at=later, update="standard")
    if known:
        assert chosen is not None
        assert chosen.number >= max(known)


@given(versions, versions, st.integers(0, 300))
def test_what_is_learnt_later_of_lower_sets_changes_nothing(found, more, at):
    before = choose(found, at=at, update="standard")
    if before is None:
        return
    known = [v.number for v in found if v.first_seen is not None and v.known_since() <= at]
    ids = {version.id for version in found}
    late = [v for v in more if v.id not in ids and known and v.number < max(known)]
    assert choose([*found, *late], at=at, update="standard") == before


@cache
def _world() -> tuple[SimulatedWorld, tuple[tuple[Document, ...], ...]]:
    """A world, and what it published on each of 12 days: half of them before a promotion."""
    world = SimulatedWorld.from_seed(b"seed of the store property", now=NOW)
    published = []
    for index in range(12):
        if index == 6:
            world.authority.raise_tcb(world.machine.tcb, advisory_ids=["SIMULATED-SA-1"])
            world.tcb_info.levels.pop(1)
        collateral = world.publish(NOW + 9 * index * DAY)
        published.append(take_apart(collateral, fmspc=world.machine.fmspc, ca="platform", tee="sgx"))
    return world, tuple(published)


def _as(document: Document, update) -> Document:
    key = document.key
    return (
        document
        if key.update is None
        else Document(DocumentKey(key.kind, key.tee, key.fmspc, key.ca, update), document.body, document.issuer_chain)
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from(["standard", "early"]), st.integers(0, 120)),
        min_size=1,
        max_size=10,
    ),
    st.integers(-10, 150),
    st.sampled_from(SETS),
)
def test_the_store_answers_as_the_rule_on_a_list(history, at_day, update):
    world, published = _world()
    at = NOW + at_day * DAY
    with tempfile.TemporaryDirectory() as folder:
        with CollateralStore(Path(folder) / "s.sqlite", roots=world.trust_roots) as store:
            for index, name, day in history:
                store.add([_as(document, name) for document in published[index]], seen=NOW + day * DAY, source="x")
        with CollateralStore(Path(folder) / "s.sqlite", roots=world.trust_roots) as store:
            for part in range(4):
                key = _as(published[0][part], update).key
                expected = _expected(history, published, part, key, at)
                found = store.in_force(key, at=at)
                if expected is None:
                    assert found is None
                else:
                    assert found is not None
                    assert store.load(found).body == expected.body == store.document(key, at=at).body


def _expected(history, published, part: int, key: DocumentKey, at: datetime) -> Document | None:
    order: list[int] = []
    seen: dict[int, int] = {}
    for index, name, day in history:
        if index not in order:
            order.append(index)
        if key.update is None or key.update == name:
            moment = int((NOW + day * DAY).timestamp())
            seen[index] = min(seen.get(index, moment), moment)
    candidates = []
    for place, index in enumerate(order):
        facts = read_document(published[index][part])
        issue, until = int(facts.issue_date.timestamp()), int(facts.next_update.timestamp())
        candidates.append(Candidate(place, facts.number, issue, until, seen.get(index)))
    chosen = choose(candidates, at=int(at.timestamp()), update=key.update)
    return None if chosen is None else published[order[chosen.id]][part]
