"""Whether collateral in files is genuine and fresh."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confcom.doctor.checks import Level
from confcom.doctor.quoting_checks import collateral_finding
from confcom.pki.chain import TrustRoots
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> SimulatedWorld:
    world = SimulatedWorld.from_seed(bytes(32), now=NOW)
    world.export_collateral(tmp_path)
    return world


def test_fresh(world: SimulatedWorld, tmp_path: Path) -> None:
    finding = collateral_finding(tmp_path, world.trust_roots, NOW)
    assert finding.level is Level.OK
    assert "first to expire 202" in finding.found
    assert "SIMULATED" in finding.found


def test_out_of_date(world: SimulatedWorld, tmp_path: Path) -> None:
    finding = collateral_finding(tmp_path, world.trust_roots, NOW + timedelta(days=400))
    assert finding.level is Level.PROBLEM
    assert "out of date" in finding.found


def test_of_another_root(world: SimulatedWorld, tmp_path: Path) -> None:
    finding = collateral_finding(tmp_path, TrustRoots.intel(), NOW)
    assert finding.level is Level.PROBLEM
    assert "--trust-root" in finding.advice


def test_missing_and_not_named(tmp_path: Path) -> None:
    assert collateral_finding(tmp_path / "none", TrustRoots.intel(), NOW).level is Level.PROBLEM
    assert collateral_finding(None, TrustRoots.intel(), NOW).level is Level.OK


def test_the_path_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert collateral_finding(path, TrustRoots.intel(), NOW).found == f"there is no collateral at {path}"
