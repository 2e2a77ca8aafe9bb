"""Replicas of the collateral service over one PostgreSQL: one question to upstream, no answer that was replaced."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest

from confcom.collateral.documents import Document, DocumentKey, take_apart
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.simulator.world import SimulatedWorld
from postgres_server import OwnServer, PostgresServer
from running_collateral_service import FMSPC, NOW, SEED, Clock, RecordedUpstream, Reply, RunningService, running_service

pytestmark = pytest.mark.postgres
TCB = f"/sgx/certification/v4/tcb?fmspc={FMSPC}"
WAIT = 120.0


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def upstream(clock: Clock) -> RecordedUpstream:
    return RecordedUpstream(SimulatedWorld.from_seed(SEED, now=NOW), clock)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as name:
        with closing(Database(DatabaseAddress.parse(postgres.of(name)))) as database:
            CHAIN.upgrade(database)
        yield postgres.of(name)


@contextmanager
def replica(url: str, upstream: RecordedUpstream, clock: Clock) -> Iterator[RunningService]:
    # The rounds of refreshing are not what is looked at.
    with running_service(url, upstream, upstream.world.trust_roots, clock, refresh_look=3600.0) as service:  # type: ignore[arg-type]
        yield service


def until(found: Callable[[], bool]) -> float:
    """Seconds until it is so."""
    begin = time.monotonic()
    while not found():
        assert time.monotonic() - begin < WAIT
        time.sleep(0.05)
    return time.monotonic() - begin


def test_upstream_is_asked_once_by_two_replicas(url: str, upstream: RecordedUpstream, clock: Clock) -> None:
    with replica(url, upstream, clock) as first, replica(url, upstream, clock) as second:
        upstream.gate.clear()
        replies: list[Reply] = []
        askers = [
            threading.Thread(target=lambda service=service: replies.append(service.ask(TCB)))  # type: ignore[misc]
            for service in (first, second) * 4
        ]
        for asker in askers:
            asker.start()
        until(lambda: bool(upstream.asked))
        time.sleep(1)  # the others wait meanwhile
        upstream.gate.set()
        for asker in askers:
            asker.join(WAIT)
    assert [reply.status for reply in replies] == [200] * 8
    assert len({reply.body for reply in replies}) == 1
    assert upstream.asked.count(DocumentKey.tcb_info("sgx", bytes.fromhex(FMSPC))) == 1


def test_a_replica_that_died_with_the_lease_is_not_waited_for_long(
    url: str, upstream: RecordedUpstream, clock: Clock
) -> None:
    with replica(url, upstream, clock) as service:
        key = DocumentKey.tcb_info("sgx", bytes.fromhex(FMSPC))
        with closing(Database(DatabaseAddress.parse(url))) as database, database.write() as connection:
            connection.exec_driver_sql(
                "INSERT INTO lease VALUES (%s, 'dead', %s)",
                (str(key), (NOW + timedelta(seconds=25)).replace(tzinfo=None)),
            )
        assert service.ask(TCB).status == 503
        clock.now += timedelta(seconds=26)
        assert until(lambda: service.ask(TCB).status == 200) < WAIT


def published(upstream: RecordedUpstream, clock: Clock) -> tuple[Document, ...]:
    collateral = upstream.world.publish(clock.now)
    return take_apart(collateral, fmspc=bytes.fromhex(FMSPC), ca="platform", tee="sgx")


def test_what_was_replaced_is_not_answered_from_the_memory_of_others(
    url: str, upstream: RecordedUpstream, clock: Clock
) -> None:
    with replica(url, upstream, clock) as first, replica(url, upstream, clock) as second:
        before = first.ask(TCB).body
        assert second.ask(TCB).body == second.ask(TCB).body == before
        assert second.metric("cache_total", result="memory") >= 1
        clock.now += timedelta(days=1)
        newer = published(upstream, clock)
        with CollateralStore(url, roots=upstream.world.trust_roots) as third:
            third.add(newer, seen=clock.now, source="tests")
        until(lambda: first.ask(TCB).body == second.ask(TCB).body == newer[0].body != before)


def test_no_answer_while_the_database_is_away_and_the_right_one_after(
    url: str, upstream: RecordedUpstream, clock: Clock, postgres: PostgresServer
) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not this test's to stop")
    with replica(url, upstream, clock) as service:
        before = service.ask(TCB)
        assert before.status == 200
        postgres.stop(signal.SIGQUIT)
        # From memory until it is noticed; then refused, and never anything else.
        replies = []

        def refused() -> bool:
            replies.append(service.ask(TCB))
            return replies[-1].status == 503

        try:
            until(refused)
        finally:
            postgres.start()
        assert {reply.body for reply in replies[:-1]} <= {before.body}
        until(lambda: service.ask(TCB).status == 200)
        assert service.ask(TCB).body == before.body
        clock.now += timedelta(days=1)
        newer = published(upstream, clock)
        with CollateralStore(url, roots=upstream.world.trust_roots) as other:
            other.add(newer, seen=clock.now, source="tests")
        until(lambda: service.ask(TCB).body == newer[0].body)
