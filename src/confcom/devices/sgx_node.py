"""What a node offers for SGX, found in one look."""

from __future__ import annotations

from dataclasses import dataclass

from confcom.devices.epc_sections import EpcSections, find_epc
from confcom.devices.host import Host
from confcom.devices.sgx_driver import SgxDriver, find_driver


@dataclass(frozen=True, slots=True)
class SgxNode:
    """EPC and driver of one host at one moment."""

    epc: EpcSections
    driver: SgxDriver

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Each reason why this node cannot run enclaves, as a clause; empty when it can."""
        return tuple(clause for clause in (self.driver.missing, self.epc.missing) if clause)


def find_sgx(host: Host) -> SgxNode:
    """Look at the host. It costs a few reads, so that it can be done every few seconds."""
    return SgxNode(find_epc(host), find_driver(host))
