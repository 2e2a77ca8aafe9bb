"""A world per test: changes of one never show in another."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.world import SimulatedWorld

SEED = bytes(range(32))
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


@pytest.fixture
def seed() -> bytes:
    return SEED


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def machine() -> SimulatedMachine:
    return SimulatedMachine(SEED)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW)


@pytest.fixture
def declaration() -> EnclaveDeclaration:
    return EnclaveDeclaration.from_names("payment service", "Contoso", isv_prod_id=3, isv_svn=5)
