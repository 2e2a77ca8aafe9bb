"""SimulatedPcs: the simulated authority as a collateral source, in the place of Intel's PCS or a cache."""

from __future__ import annotations

from typing import Literal

from confcom.appraisal.collateral import Collateral
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.simulator.authority import SimulatedAuthority
from confcom.simulator.machine import PckCa


class SimulatedPcs:
    """A `CollateralSource`. Set `reachable` to False to play an outage."""

    def __init__(self, authority: SimulatedAuthority) -> None:
        self.authority = authority
        self.reachable = True

    def fetch(self, fmspc: bytes, ca: Literal["processor", "platform"], tee: Literal["sgx", "tdx"]) -> Collateral:
        """The authority's collateral as it stands now; there is none for TDX."""
        if not self.reachable:
            raise CollateralUnavailable("the simulated collateral service does not answer")
        if tee != "sgx":
            raise CollateralNotFound("the simulated authority knows SGX machines only")
        return self.authority.collateral(fmspc, PckCa(ca))
