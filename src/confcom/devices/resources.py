"""A device that any number of containers may share, offered to a fixed number of them at a time."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from confcom.devices.epc import EpcPool, plan_pool, prefer_one_node
from confcom.devices.host import Host
from confcom.devices.interface import Inventory
from confcom.devices.sgx_node import PROVISION_PATHS, DriverDevice, SgxNode
from confcom.errors import PlatformUnavailable, PolicyError
from confcom.protocols.aesm import FOLDER, RESOURCE, SOCKET, VARIABLE
from confcom.protocols.epc import HELPER_EPC
from confcom.protocols.kubelet import ContainerAllocation, Device, ListPodResourcesResponse, Mount


@dataclass(frozen=True, slots=True)
class DeviceSlots:
    """A DeviceResource of `count` slots for one device. `find` raises `PlatformUnavailable` when it is not there."""

    host: Host
    name: str
    endpoint: str
    count: int
    find: Callable[[SgxNode], DriverDevice]
    why_missing: Callable[[SgxNode], str]
    guarded: bool = False
    prefers: bool = False
    essential: bool = True

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, all of them as healthy as the device."""
        reason = self.why_missing(node)
        return Inventory(slots(self.endpoint, self.count, reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Any will do."""
        return any_of(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """The one device, under its names; more than one slot brings no more."""
        del ids
        device = self.find(inventory.node)
        return ContainerAllocation(devices=device.nodes(self.host), mounts=device.mounts(self.host))


def slots(word: str, count: int, reason: str) -> tuple[Device, ...]:
    """As many devices, all of them healthy unless there is a reason why not."""
    return tuple(Device(f"{word}-{number}", not reason) for number in range(count))


def any_of(available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
    """The first ids that are available, and those that must be among them."""
    return tuple(dict.fromkeys([*must_include, *available]))[: max(size, len(must_include))]


# --- The enclave device: what a container needs to run enclaves at all ------------------------------------------------


ENCLAVE_RESOURCE = "sgx.intel.com/enclave"


def enclave_slots(host: Host, count: int, *, name: str = ENCLAVE_RESOURCE) -> DeviceSlots:
    """The enclave device as a resource of its own, for nodes whose EPC is published in the node's status."""
    return DeviceSlots(host, name, "enclave", count, enclave_device, lambda node: node.driver.missing)


def enclave_device(node: SgxNode) -> DriverDevice:
    """The device; `PlatformUnavailable` when it is not there now."""
    if node.driver.enclave is None:
        raise PlatformUnavailable(f"no enclave device: {node.driver.missing}")
    return node.driver.enclave


# --- EPC as one device per MiB: the enclave device comes with it, so one request brings both --------------------------


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


# --- The provisioning device, which lets an enclave have the platform's provisioning key: nobody gets it  ---
#
# For applications it is a resource that is offered only when the operator says so, and then only to pods of the
# namespaces that the operator names. The quote helper has it with its own part of the EPC. The node checks the
# namespace itself before each start of a container, however the pod was admitted.


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


# --- The way to the node's quote helper as a resource: a container that requests it finds the helper's fo ---
#
# A pod needs no volume for that, so it may live where Pod Security forbids those of the host. What it gets is less
# than such a volume, too: the mount is read-only, which is enough to connect to the socket, and nobody can replace
# that for others. Only who asks gets it: another's image may have a service of its own in this place.


PATIENCE = 60.0
"""Seconds for which a helper may be away before pods are no longer sent to this node."""


class HelperSlots:
    """A DeviceResource of `count` slots. `folder` is seen here under the path that it has on the host.

    The kubelet fails pods that come when it has just been told of unhealthy slots. So a helper that was there is waited
    for a while when its socket is away. Not so without the folder: a runtime would make an empty one, or fail.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        name: str = RESOURCE,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.endpoint = "quote-helper"
        self.prefers = False
        self.guarded = False
        self.essential = False
        self._folder = folder
        self._count = count
        self._patience = patience
        self._clock = clock
        self._seen: float | None = None

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, healthy while a helper is there or will be back; what there is of SGX does not matter."""
        reason = self._why_no_folder() or self._why_no_helper()
        return Inventory(slots(self.endpoint, self._count, reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Any will do."""
        return any_of(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """The folder, read-only, and the variable that says to ask there."""
        del ids
        if inventory.reason:
            raise PlatformUnavailable(inventory.reason)
        return ContainerAllocation(mounts=(Mount(str(self._folder), FOLDER),), environment=((VARIABLE, "1"),))

    def _why_no_folder(self) -> str:
        try:
            links = self._folder.stat().st_nlink
        except OSError as error:
            return f"{self._folder}: {error.strerror}"
        # We hold on to what was mounted here; under its path on the node there may be another by now.
        return (
            "" if links else f"{self._folder} was removed from the node: restart the device plugin and the helper there"
        )

    def _why_no_helper(self) -> str:
        now = self._clock()
        try:
            is_socket = stat.S_ISSOCK((self._folder / SOCKET).lstat().st_mode)
        except OSError as error:
            if self._seen is not None and now - self._seen < self._patience:
                return ""
            return f"no quote helper: {self._folder / SOCKET}: {error.strerror}"
        self._seen = now if is_socket else None
        return "" if is_socket else f"no quote helper: {self._folder / SOCKET} is no socket"
