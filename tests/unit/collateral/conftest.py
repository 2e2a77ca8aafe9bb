"""A simulated world whose documents go into stores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.collateral.store.store import CollateralStore
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the store tests", now=NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path, world: SimulatedWorld) -> Iterator[CollateralStore]:
    with CollateralStore(path, roots=world.trust_roots) as opened:
        yield opened
