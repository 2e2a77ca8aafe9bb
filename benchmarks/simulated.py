"""Inputs from the simulated platform, where no real quotes are at hand."""

from __future__ import annotations

from datetime import UTC, datetime

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import to_json
from confcom.pki.roots import TrustRoots
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld

SEED = b"the seed of the benchmarks' world"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def simulated_world() -> SimulatedWorld:
    """The world that the benchmarks run in."""
    return SimulatedWorld.from_seed(SEED, now=NOW)


def simulated_input() -> tuple[bytes, Collateral, str, TrustRoots, datetime]:
    """Quote, collateral, the same as JSON for dcap-qvl, roots and time."""
    world = simulated_world()
    enclave = world.machine.launch(EnclaveDeclaration.from_names("bench", "bench"))
    report = enclave.create_report(world.platform.init_quote().target_info, bytes(64))
    collateral = world.publish()
    return world.platform.quote(report).quote, collateral, to_json(collateral).decode(), world.trust_roots, NOW
