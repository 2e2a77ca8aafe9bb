"""The provisioning device, which lets an enclave have the platform's provisioning key: nobody gets it unless granted.

It is a resource of its own that is offered only when the operator says so, and then only to pods of the namespaces that
the operator names: the node checks that itself before each start of a container, whoever admitted the pod.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from confcom.devices.device_slots import DeviceSlots
from confcom.devices.host import Host
from confcom.devices.sgx_driver import PROVISION_PATHS, DriverDevice
from confcom.devices.sgx_node import SgxNode
from confcom.errors import PlatformUnavailable, PolicyError
from confcom.protocols.kubelet_podresources import ListPodResourcesResponse

PROVISION_RESOURCE = "sgx.intel.com/provision"
ANY_NAMESPACE = "*"


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
                advice="Add the namespace to provision_namespaces of the device plugin if its pods shall hold the "
                "provisioning privilege.",
            )
    return f"{holders[0].namespace}/{holders[0].pod}"


def why_no_provision(node: SgxNode) -> str:
    """Why the provisioning device cannot be had now; empty when it can."""
    if node.driver.provision is not None:
        return ""
    return node.driver.missing or f"neither {PROVISION_PATHS[0]} nor {PROVISION_PATHS[1]} is a device"
