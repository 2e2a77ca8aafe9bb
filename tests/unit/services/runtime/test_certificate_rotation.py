"""Certificates that replicas share in a Secret: at no moment is one served that is not trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.pki.serving_pair import ServingPair, make_serving_pair
from confcom.services.runtime.certificates import (
    CertificateKeeper,
    CertificateMetrics,
    Holding,
    RotationPolicy,
    SecretState,
    TlsSettings,
    next_holding,
)

START = datetime(2027, 1, 1, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
POLICY = RotationPolicy(("sgx-webhook.confcom-system.svc",), 90 * DAY, 30 * DAY, 10 * MINUTE, "a service")


def advance(held: Holding, now: datetime, *, in_force: bool = True) -> Holding:
    return next_holding(held, POLICY, now=now, bundle_in_force=in_force)


def test_a_pair_is_for_the_names_and_signed_by_an_authority_of_its_own() -> None:
    authority, pair = make_serving_pair(("a.b.svc", "10.0.0.1"), now=START, lifetime=DAY, common_name="x")
    assert pair == ServingPair.parse(pair.certificate, pair.key)
    assert pair.names == {"a.b.svc", "10.0.0.1"}
    assert (pair.made, pair.expires) == (START, START + DAY)
    assert pair.is_issued_by(authority)
    other, second = make_serving_pair(("a.b.svc",), now=START, lifetime=DAY, common_name="x")
    assert not pair.is_issued_by(other)
    assert ServingPair.parse(pair.certificate, second.key) is None
    for broken in (b"", b"junk", pair.certificate[:200]):
        assert ServingPair.parse(broken, pair.key) is None
        assert not pair.is_issued_by(broken)


@pytest.mark.parametrize("hosts", ["0:0::1", "Attest.Example", "*.attest.example, 10.0.0.1", "attest_1.example"])
def test_names_in_any_spelling_are_those_of_the_certificate(hosts: str) -> None:
    settings = TlsSettings(tls_secret="s", tls_service="attest", tls_hosts=hosts)
    settings.check()
    policy = RotationPolicy.of(settings, "attest")
    held = next_holding(Holding(), policy, now=START, bundle_in_force=True)
    held = Holding.parse(held.data())
    assert next_holding(held, policy, now=START + DAY, bundle_in_force=True) is held


@pytest.mark.parametrize("hosts", ["a b", "attest.example:8443", "https://attest.example", "ü.example", "x" * 300])
def test_what_is_neither_name_nor_address_is_refused_where_it_was_set(hosts: str) -> None:
    with pytest.raises(ConfigError, match=r"^tls_hosts: '.*' is neither a name nor an address"):
        TlsSettings(tls_secret="s", tls_service="attest", tls_hosts=hosts).check()


def test_a_year_of_rotations() -> None:
    held, now, pairs, most = Holding(), START, set(), 0
    while now < START + 365 * DAY:
        held = advance(held, now)
        assert held == Holding.parse(held.data())
        assert held.current is not None
        assert held.current.expires > now + 29 * DAY
        assert held.trusts(held.current)
        pairs.add(held.current.certificate)
        most = max(most, len(held.trusted))
        now += timedelta(hours=3)
    assert len(pairs) == 7
    assert most == 2
    assert len(held.trusted) == 1
    assert not any(b"PRIVATE" in value for name, value in held.data().items() if not name.endswith(".key"))


def test_the_successor_waits_until_it_is_trusted() -> None:
    held = advance(Holding(), START)
    later = START + 61 * DAY
    prepared = advance(held, later)
    assert prepared.prepared is not None
    assert prepared.current == held.current
    assert len(prepared.trusted) == 2
    assert advance(prepared, later + 9 * MINUTE) is prepared
    assert advance(prepared, later + 11 * MINUTE, in_force=False) is prepared
    used = advance(prepared, later + 11 * MINUTE)
    assert used.current == prepared.prepared
    assert used.trusted == prepared.trusted
    assert advance(used, later + 20 * MINUTE) is used
    assert len(advance(used, later + 22 * MINUTE).trusted) == 1


def test_further_names_come_with_a_successor_too() -> None:
    held = advance(Holding(), START)
    wider = POLICY._replace(names=(*POLICY.names, "10.0.0.1"))
    found = next_holding(held, wider, now=START + MINUTE, bundle_in_force=True)
    assert found.current == held.current
    assert found.prepared is not None
    assert "10.0.0.1" in found.prepared.names
    # A replica with the former settings is content with it.
    assert advance(found, START + MINUTE) is found


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("value", [b"", b"junk"])
def test_a_broken_secret_is_made_anew(name: str, value: bytes) -> None:
    held = advance(Holding(), START)
    found = advance(Holding.parse(held.data() | {name: value}), START + MINUTE)
    assert found.current is not None
    assert found.trusts(found.current)


class SharedObjects:
    """Secret and ConfigMap in memory, as `PublishedCa` has them; every call yields once, as one over a network does.

    A write that comes too late is refused as the API server does it.
    """

    def __init__(self) -> None:
        self.version = 1
        self.data: dict[str, bytes] = {}
        self.bundle: bytes | None = b""
        self.down = False
        self.conflicts = 0

    async def secret(self) -> SecretState:
        await self._way()
        return SecretState(str(self.version), dict(self.data))

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        await self._way()
        if version != str(self.version):
            self.conflicts += 1
            raise ClusterRefused("the object has been modified", status=409, reason="Conflict")
        self.version += 1
        self.data = dict(data)

    async def published(self) -> bytes | None:
        await self._way()
        return self.bundle

    async def publish(self, bundle: bytes) -> None:
        await self._way()
        self.bundle = bundle

    async def _way(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise ClusterError("the API server is away")


class Cluster:
    """Some replicas around one store, and a clock that the test turns."""

    def __init__(self, replicas: int) -> None:
        self.now = START
        self.store = SharedObjects()
        self.keepers = [self.replica() for _ in range(replicas)]

    def replica(self) -> CertificateKeeper:
        metrics = CertificateMetrics(CollectorRegistry(), "confcom_test")
        return CertificateKeeper(self.store, POLICY, metrics, service="test", clock=lambda: self.now)

    def gaps(self) -> list[int]:
        """Replicas that serve what clients do not trust."""
        return [
            index
            for index, keeper in enumerate(self.keepers)
            if keeper.served is not None and not _trusts(self.store.bundle or b"", keeper.served)
        ]


def _trusts(bundle: bytes, pair: ServingPair) -> bool:
    return Holding.parse({"ca.crt": bundle}).trusts(pair)


async def test_replicas_that_start_together_agree() -> None:
    cluster = Cluster(5)
    await asyncio.gather(*(keeper.look() for keeper in cluster.keepers))
    assert cluster.store.conflicts, "nobody came too late, so nothing was shown"
    assert len({keeper.served for keeper in cluster.keepers}) == 1
    assert not cluster.gaps()
    assert [keeper.not_ready for keeper in cluster.keepers] == [""] * 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from((0, 1, 5, 30, 60 * 24 * 20)), st.booleans()), max_size=40))
@example([(0, 28800, False), (0, 28800, False), (0, 28800, False), (0, 30, True), (0, 30, True)])
def test_a_rotation_has_no_gap_whoever_looks_when(steps: list[tuple[int, int, bool]]) -> None:
    """Every replica sees the API at least once in the time of an overlap; else in any order, and with it away."""

    async def run() -> None:
        cluster = Cluster(3)
        looks = cluster.now
        await _all_look(cluster)
        for replica, minutes, away in steps:
            if cluster.now + minutes * MINUTE >= looks + POLICY.overlap:
                await _all_look(cluster)
                looks = cluster.now
            cluster.now += minutes * MINUTE
            cluster.store.down = away
            await _all_look(cluster)
            cluster.store.down = False
            await cluster.keepers[replica].look()
            assert not cluster.gaps()
        assert all(keeper.served and keeper.served.expires > cluster.now for keeper in cluster.keepers)

    asyncio.run(run())


async def _all_look(cluster: Cluster) -> None:
    await asyncio.gather(*(keeper.look() for keeper in cluster.keepers), return_exceptions=True)


async def test_a_config_map_that_was_changed_is_published_again() -> None:
    cluster = Cluster(1)
    (keeper,) = cluster.keepers
    await keeper.look()
    cluster.store.bundle = b"another's"
    assert cluster.gaps()
    await keeper.look()
    assert not cluster.gaps()


async def test_a_secret_that_was_emptied_is_put_back_as_it_was() -> None:
    cluster = Cluster(2)
    await asyncio.gather(*(keeper.look() for keeper in cluster.keepers))
    before = cluster.store.data
    cluster.store.data, cluster.store.version = {}, cluster.store.version + 1
    await cluster.keepers[1].look()
    assert cluster.store.data == before


async def test_without_the_config_map_no_replica_is_ready() -> None:
    cluster = Cluster(1)
    cluster.store.bundle = None
    await cluster.keepers[0].look()
    assert cluster.keepers[0].not_ready.startswith("there is no ConfigMap")


async def test_a_replica_that_has_a_certificate_outlives_the_api_server() -> None:
    cluster = Cluster(1)
    (keeper,) = cluster.keepers
    task = asyncio.create_task(keeper.run(0.001))
    await keeper.first()
    await asyncio.sleep(0.01)
    cluster.store.down = True
    await asyncio.sleep(0.02)
    assert not task.done()
    assert keeper.not_ready == ""
    cluster.now += 91 * DAY
    await asyncio.sleep(0.02)
    assert keeper.not_ready == "the API server is away"
    task.cancel()
