"""A simulated world and enclaves on its machine."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedEnclave
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"platform unit tests", now=NOW)


@pytest.fixture
def enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("tested", "Contoso"))


@pytest.fixture
def other_enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("neighbour", "Contoso"))
