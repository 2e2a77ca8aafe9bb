"""EPC as one device per MiB: the enclave device comes with it, so one request brings both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from confcom.devices.epc_pool import EpcPool, plan_pool, prefer_one_node
from confcom.devices.host import Host
from confcom.devices.interface import Inventory
from confcom.devices.sgx_enclave import enclave_device
from confcom.devices.sgx_node import SgxNode
from confcom.protocols.kubelet import ContainerAllocation, Device

CANONICAL_RESOURCE = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
SIZE_VARIABLE = "SGX_EPC_MIB"
"""Environment variable with the MiB that a container was given: a size, never ids."""


@dataclass(frozen=True, slots=True)
class EpcUnits:
    """A DeviceResource. Several NUMA nodes make it prefer units of one."""

    host: Host
    name: str = CANONICAL_RESOURCE
    reserve_mib: int = 0
    overcommit: float = 1.0
    prefers: bool = True
    endpoint: str = "epc"
    guarded: bool = False
    essential: bool = True

    def pool(self, node: SgxNode) -> EpcPool:
        """What of the node's EPC may be requested."""
        return plan_pool(node.epc.sections, reserve_mib=self.reserve_mib, overcommit=self.overcommit)

    def inventory(self, node: SgxNode) -> Inventory:
        """A device per MiB; all of them are as healthy as the driver."""
        reason = "; ".join(node.obstacles)
        return Inventory(_devices(self.pool(node), node.epc.numa_nodes > 1, not reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Units of one NUMA node where possible."""
        return prefer_one_node(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """The enclave device under its names, and the size in the environment."""
        device = enclave_device(inventory.node)
        return ContainerAllocation(
            devices=device.nodes(self.host),
            mounts=device.mounts(self.host),
            environment=((SIZE_VARIABLE, str(len(ids))),),
        )


@lru_cache(maxsize=4)  # the pool hardly ever changes, and a large one takes a while to name
def _devices(pool: EpcPool, topology: bool, healthy: bool) -> tuple[Device, ...]:
    return tuple(
        Device(unit, healthy, section.numa_node if topology else None)
        for section in pool.sections
        for unit in section.ids
    )
