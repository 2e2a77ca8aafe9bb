"""Claims of callers without a token: each address has its own, bounded, removed with the platform."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from confcom.collateral.store import platforms
from confcom.collateral.store.platform_sightings import platform_id
from confcom.collateral.store.platforms import PlatformTcb, VerifiedPck
from confcom.collateral.store.store import CollateralStore
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(range(32)), now=NOW, machines=2)


@pytest.fixture
def store(address, world):
    with CollateralStore(address, roots=world.trust_roots) as store:
        yield store


def platform(number: int, svn: int = 255) -> PlatformTcb:
    return PlatformTcb(number.to_bytes(16, "big"), bytes(2), bytes([svn]) * 16, 13)


@pytest.fixture
def verified(store, world) -> list[VerifiedPck]:
    def verify(machine) -> VerifiedPck:
        leaf, end, issuers = world.authority.pck_chain(machine).partition(b"-----END CERTIFICATE-----\n")
        return store.platforms.verify(PckCertificateAnswer(leaf + end, issuers, bytes(18)), bytes(2))

    return [verify(machine) for machine in world.machines]


def test_a_claim_comes_back_to_its_address_alone(store, verified):
    store.claims.put("a", platform(1), b"\1" * 384, verified[0], seen=NOW)
    found = store.claims.of_caller("a", platform(1), b"\1" * 384)
    assert (found.answer, found.encrypted_ppid, found.last_seen) == (verified[0].answer, b"\1" * 384, NOW)
    assert store.claims.of_caller("a", platform(1), None) == found
    assert store.claims.of_caller("a", platform(1), b"\2" * 384) is None
    assert store.claims.of_caller("b", platform(1), None) is None
    assert store.claims.of_caller("a", platform(2), None) is None
    assert store.claims.of_caller("a", platform(1, 254), None) is None
    assert store.claims.ppid_of_caller("a", platform(1, 254)) == b"\1" * 384


def test_of_two_processors_behind_one_address_the_first_is_meant(store, verified):
    store.claims.put("a", platform(1), b"\1" * 384, verified[0], seen=NOW)
    store.claims.put("a", platform(1), b"\2" * 384, verified[1], seen=NOW + timedelta(hours=1))
    assert store.claims.of_caller("a", platform(1), None).answer == verified[0].answer
    assert store.claims.of_caller("a", platform(1), b"\2" * 384).answer == verified[1].answer
    assert store.claims.certificates("a", platform(1)) == (verified[0].answer,)
    assert store.claims.certificates("b", platform(1)) == ()


def test_a_claim_is_renewed_in_its_place(store, verified):
    for hour in range(3):
        store.claims.put("a", platform(1), bytes([hour + 1]) * 384, verified[0], seen=NOW + timedelta(hours=hour))
    assert store.claims.of_caller("a", platform(1), b"\1" * 384) is None
    assert store.claims.of_caller("a", platform(1), b"\3" * 384).last_seen == NOW + timedelta(hours=2)


def test_claims_are_bounded_per_address_and_in_all(store, verified, monkeypatch):
    monkeypatch.setattr(platforms, "MAX_OF_CALLER", 10)
    monkeypatch.setattr(platforms, "MAX_CLAIMS", 30)
    for number in range(50):
        store.claims.put("flood", platform(number), b"\1" * 384, verified[0], seen=NOW + timedelta(seconds=number))
    assert store.claims.of_caller("flood", platform(39), None) is None
    assert store.claims.of_caller("flood", platform(40), None) is not None
    for number in range(40):
        caller, time = str(number), NOW + timedelta(hours=1, seconds=number)
        store.claims.put(caller, platform(number), b"\1" * 384, verified[0], seen=time)
    assert [store.claims.of_caller(str(n), platform(n), None) is not None for n in (0, 9, 10, 39)] == [
        *(False, False),
        *(True, True),
    ]


def test_claims_go_with_their_platform(store, verified):
    for number in range(3):
        store.claims.put("a", platform(number), b"\1" * 384, verified[number % 2], seen=NOW + timedelta(days=number))
        store.observe_platform(verified[number % 2].extension, seen=NOW)
    assert store.platforms.remove(platform(0).qe_id) == 1
    assert store.claims.of_caller("a", platform(0), None) is None
    assert store.platforms.remove_known(platform_id(verified[1].extension)) == 1
    assert store.claims.of_caller("a", platform(1), None) is None
    assert store.claims.of_caller("a", platform(2), None) is not None
    store.platforms.remove_unseen(NOW + timedelta(days=3))
    assert store.claims.of_caller("a", platform(2), None) is None
