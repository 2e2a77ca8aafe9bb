"""Fixtures and switches for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, and nothing is decided by the wall clock.
settings.register_profile("confcom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("confcom")

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
