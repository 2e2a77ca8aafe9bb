"""Whether two PCK certificates are of one processor."""

from __future__ import annotations

import datetime as dt

import pytest

from confcom.collateral.pck_rules import require_same_platform
from confcom.errors import MismatchError, UntrustedRootError
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.simulator.machine import MachineTcb
from confcom.simulator.world import SimulatedWorld

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(32), now=NOW, machines=2)


def answer(world: SimulatedWorld, machine: int) -> PckCertificateAnswer:
    end = b"-----END CERTIFICATE-----\n"
    leaf, _, issuers = world.authority.pck_chain(world.machines[machine]).partition(end)
    return PckCertificateAnswer(leaf + end, issuers, bytes(18))


def test_a_processor_stays_the_same_whatever_its_tcb(world: SimulatedWorld) -> None:
    before = answer(world, 0)
    world.machine.tcb = MachineTcb((20,) * 16, 20)

    require_same_platform(before, answer(world, 0), roots=world.trust_roots)


def test_another_processor_is_refused_without_telling_its_ppid(world: SimulatedWorld) -> None:
    with pytest.raises(MismatchError, match="another processor") as refused:
        require_same_platform(answer(world, 0), answer(world, 1), roots=world.trust_roots)
    for machine in world.machines:
        assert machine.ppid.hex() not in f"{refused.value} {refused.value.expected} {refused.value.found}"


def test_what_is_not_authentic_is_not_compared(world: SimulatedWorld) -> None:
    with pytest.raises(UntrustedRootError):
        require_same_platform(answer(world, 0), answer(world, 0), roots=TrustRoots.intel())
