"""A simulated world whose documents go into stores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
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
def address(database_address: str) -> str:
    """Of a new store, on each engine; in PostgreSQL a command makes the tables."""
    database = Database(DatabaseAddress.parse(database_address))
    if database.shared:
        CHAIN.upgrade(database)
    database.close()
    return database_address


@pytest.fixture
def store(address: str, world: SimulatedWorld) -> Iterator[CollateralStore]:
    with CollateralStore(address, roots=world.trust_roots) as opened:
        yield opened
