"""Replicas of the collateral service over one PostgreSQL: one question to upstream, no answer that was replaced."""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from itertools import count

import pytest

from confcom.collateral.documents import Document, DocumentKey, take_apart
from confcom.collateral.store.database import StoreUnavailable
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.services.collateral.service_http import CONFIRMED_FOR
from confcom.simulator.world import SimulatedWorld
from postgres_server import OwnServer, PostgresServer
from running_collateral_service import FMSPC, NOW, SEED, Clock, RecordedUpstream, Reply, RunningService, running_service
from tcp_proxy import TcpProxy

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(1800)]
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
def replica(url: str, upstream: RecordedUpstream, clock: Clock, **settings: object) -> Iterator[RunningService]:
    # The rounds of refreshing are not what is looked at.
    settings |= {"refresh_look": 3600.0}
    with running_service(url, upstream, upstream.world.trust_roots, clock, **settings) as service:  # type: ignore[arg-type]
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


TOKEN = "the user's token"
SILENT = CONFIRMED_FOR + 15


class Load:
    """Clients that read a document from replicas and register platforms with them, and what they were answered."""

    def __init__(self, services: list[RunningService]) -> None:
        self.accepted: list[str] = []
        self.read: list[tuple[float, float, Reply]] = []
        """When each request began and ended, and its answer."""
        self.broken: list[BaseException] = []
        self._names = count()
        self._end = threading.Event()
        kinds = [self._reads, self._writes] * 2
        self._threads = [threading.Thread(target=kind, args=(one,)) for one in services for kind in kinds]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(WAIT)

    def _reads(self, service: RunningService) -> None:
        self._repeat(lambda: self._note(time.monotonic(), service.ask(TCB)))

    def _note(self, begun: float, reply: Reply) -> None:
        self.read.append((begun, time.monotonic(), reply))

    def _writes(self, service: RunningService) -> None:
        def register() -> None:
            qe_id = f"{next(self._names):032x}"
            form = {"qe_id": qe_id, "pce_id": "0000", "platform_manifest": "ab" * 1000}
            path = "/sgx/certification/v4/platforms"
            if service.ask(path, method="POST", headers={"user-token": TOKEN}, body=form).status == 200:
                self.accepted.append(qe_id)

        self._repeat(register)

    def _repeat(self, call: Callable[[], None]) -> None:
        while not self._end.wait(0.02):
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - the replicas have to answer, whatever the network does
                self.broken.append(error)


def test_a_bad_network_to_the_database_loses_no_write_and_makes_no_answer_wrong(
    url: str, upstream: RecordedUpstream, clock: Clock, postgres: PostgresServer
) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("a server that CONFCOM_TEST_POSTGRES names has no proxy of the tests before it")
    proxy = TcpProxy(postgres.port)
    through = url.replace(f":{postgres.port}/", f":{proxy.port}/")
    assert through != url
    replaced: list[tuple[bytes, float]] = []
    with ExitStack() as stack:
        stack.callback(proxy.close)
        other = stack.enter_context(CollateralStore(url, roots=upstream.world.trust_roots))

        def publish() -> None:
            clock.now += timedelta(seconds=1)
            newer = published(upstream, clock)
            while True:  # a replica that fell silent with the writers' lock has it until the server takes it away
                with suppress(StoreUnavailable):
                    other.add(newer, seen=clock.now, source="tests")
                    break
            replaced.append((newer[0].body, time.monotonic()))

        publish()
        settings = {"mode": "offline", "user_token_hash": hashlib.sha512(TOKEN.encode()).hexdigest()}
        services = [stack.enter_context(replica(through, upstream, clock, **settings)) for _ in range(2)]
        load = Load(services)
        stack.callback(load.close)

        def silent() -> None:
            proxy.silence()
            publish()
            time.sleep(SILENT)
            proxy.restore()

        def both_go_on(accepted: int) -> bool:
            newest = replaced[-1][0]
            return len(load.accepted) > accepted + 10 and all(one.ask(TCB).body == newest for one in services)

        for what, fault in (("cut", proxy.cut), ("silent", silent), ("cut again", proxy.cut)):
            until(lambda: both_go_on(0))
            begun = time.monotonic()
            publish()
            fault()
            over, accepted = time.monotonic(), len(load.accepted)
            until(lambda accepted=accepted: both_go_on(accepted))  # type: ignore[misc]
            longest = max(end - begin for begin, end, _ in load.read if end > begun)
            sys.stdout.write(f"{what}: again after {time.monotonic() - over:.1f} s, an answer took {longest:.1f} s\n")
        load.close()

        assert load.broken == []
        assert {reply.status for _, _, reply in load.read} <= {200, 503}
        for begun, _, reply in load.read:
            if reply.status == 200:
                versions = [body for body, _ in replaced]
                (next_one,) = [replaced[at + 1 : at + 2] for at, body in enumerate(versions) if body == reply.body]
                assert not next_one or begun < next_one[0][1] + CONFIRMED_FOR
        entries = other.registrations.page("waiting", limit=1_000_000)
        kept = {one.request.qe_id.hex() for one in entries if one.request.qe_id}
        assert set(load.accepted) <= kept
        assert len(load.accepted) > 30
