"""Fixtures and switches for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from postgres_server import PostgresServer

# A busy machine is slow, and nothing is decided by the wall clock.
settings.register_profile("confcom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("confcom")

# A background job of a shell ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So is SIGHUP under nohup. A handler is not inherited: this process stays, and its children are asked as usual.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

ROOT = Path(__file__).resolve().parent.parent


def vectors_folder() -> Path | None:
    """The folder of real quotes: named by CONFCOM_VECTORS, else beside the checkout."""
    named = os.environ.get("CONFCOM_VECTORS")
    candidate = Path(named) if named else ROOT.parent / "shared" / "vectors"
    return candidate if (candidate / "index.tsv").is_file() or (candidate / "real" / "index.tsv").is_file() else None


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of real quotes; tests that need it skip where it is absent."""
    folder = vectors_folder()
    if folder is None:
        pytest.skip("no real quotes here: set CONFCOM_VECTORS to the folder of test vectors")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of PostgreSQL are those of `./dev postgres`."""
    if not os.environ.get("CONFCOM_TEST_POSTGRES"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("postgres")])
        items[:] = [item for item in items if not item.get_closest_marker("postgres")]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; a test that uses it has the mark `postgres`."""
    from postgres_server import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a new database, by either engine: what holds for one holds for both."""
    if request.param == "sqlite":
        yield str(tmp_path / "store.sqlite")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as name:
        yield server.of(name)
