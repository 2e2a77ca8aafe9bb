"""Inputs from the simulated platform, where no real quotes are at hand."""

from __future__ import annotations

from datetime import UTC, datetime

from confcom.simulator.world import SimulatedWorld

SEED = b"the seed of the benchmarks' world"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def simulated_world() -> SimulatedWorld:
    """The world that the benchmarks run in."""
    return SimulatedWorld.from_seed(SEED, now=NOW)
