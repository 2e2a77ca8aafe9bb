"""The provisioning device, which lets an enclave have the platform's provisioning key: nobody gets it unless granted.

For applications it is a resource that is offered only when the operator says so, and then only to pods of the
namespaces that the operator names. The quote helper has it with its own part of the EPC. The node checks the namespace
itself before each start of a container, however the pod was admitted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from confcom.devices.device_slots import DeviceSlots, any_of, slots
from confcom.devices.epc_units import SIZE_VARIABLE
from confcom.devices.host import Host
from confcom.devices.interface import Inventory
from confcom.devices.sgx_driver import PROVISION_PATHS, DriverDevice
from confcom.devices.sgx_enclave import enclave_device
from confcom.devices.sgx_node import SgxNode
from confcom.errors import PlatformUnavailable, PolicyError
from confcom.protocols.epc import HELPER_EPC
from confcom.protocols.kubelet import ContainerAllocation, ListPodResourcesResponse

PROVISION_RESOURCE = "sgx.intel.com/provision"
ANY_NAMESPACE = "*"
HELPERS = 2
"""Quote helpers of a node at a time: the present one, and a successor that proves itself beside it."""


@dataclass(slots=True)
class HelperEpc:
    """A DeviceResource: EPC of the node's quote helpers, `mib` each, one device per MiB, with both SGX devices.

    Applications cannot use it up, so a successor starts on a node where all EPC is requested. `held` is what helpers
    have now: beside one that asked for more, by earlier settings, there is room for a successor all the same.
    """

    host: Host
    mib: int
    name: str = HELPER_EPC
    endpoint: str = "quote-helper-epc"
    guarded: bool = True
    prefers: bool = False
    essential: bool = True
    held: int = 0

    @property
    def reserve_mib(self) -> int:
        """What has to be taken from the pool of applications."""
        return HELPERS * self.mib

    def inventory(self, node: SgxNode) -> Inventory:
        """A device per MiB, as healthy as both devices of the driver."""
        reason = "; ".join(node.obstacles) or why_no_provision(node)
        return Inventory(slots(self.endpoint, max(self.reserve_mib, self.held + self.mib), reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Any will do."""
        return any_of(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """Both devices under their names, and the size in the environment."""
        devices = enclave_device(inventory.node), provision_device(inventory.node)
        return ContainerAllocation(
            devices=tuple(node for device in devices for node in device.nodes(self.host)),
            mounts=tuple(mount for device in devices for mount in device.mounts(self.host)),
            environment=((SIZE_VARIABLE, str(len(ids))),),
        )


def provision_slots(host: Host, count: int, *, name: str = PROVISION_RESOURCE, guarded: bool = True) -> DeviceSlots:
    """The provisioning device as a resource."""
    return DeviceSlots(host, name, "provision", count, provision_device, why_no_provision, guarded=guarded)


def provision_device(node: SgxNode) -> DriverDevice:
    """The device; `PlatformUnavailable` when it is not there now."""
    if node.driver.provision is None:
        raise PlatformUnavailable(why_no_provision(node))
    return node.driver.provision


def check_holder(
    ids: Sequence[str], held: ListPodResourcesResponse, *, resource: str, namespaces: Collection[str]
) -> str:
    """Which pod (`namespace/name`) holds these ids; a `PolicyError` unless its namespace may have them."""
    if ANY_NAMESPACE in namespaces:
        return "any"
    wanted = set(ids)
    holders = [entry for entry in held.held if entry.resource == resource and wanted & set(entry.ids)]
    if not holders:
        raise PolicyError(
            f"no pod is known to hold {resource}, so its namespace cannot be checked",
            advice="Ordinary init containers cannot have this resource: the kubelet does not say whose they are.",
        )
    for holder in holders:
        if holder.namespace not in namespaces:
            raise PolicyError(
                f"namespace {holder.namespace} (pod {holder.pod}) may not have {resource}",
                advice="Give it to the quote helper only."
                if resource == HELPER_EPC
                else "Add the namespace to provision_namespaces of the device plugin if its pods shall hold the "
                "provisioning privilege.",
            )
    return f"{holders[0].namespace}/{holders[0].pod}"


def why_no_provision(node: SgxNode) -> str:
    """Why the provisioning device cannot be had now; empty when it can."""
    if node.driver.provision is not None:
        return ""
    return node.driver.missing or f"neither {PROVISION_PATHS[0]} nor {PROVISION_PATHS[1]} is a device"
