"""What containers get of SGX: extended resources that the kubelet hands out as devices, and devices that claims share.

Resources are EPC in units of 1 MiB, slots of the enclave and the provisioning device, and the way to the node's quote
helper. For claims (dynamic resource allocation) EPC is one device per NUMA node, shared by amount; the provisioning
device is one more, of another kind, for claims of named namespaces alone. What a prepared claim brings is a file in the
container runtime's CDI folder. Pool, reserve and overcommit are the same either way.

A container gets a device under every path that programs know, each made from the one true device: a runtime can pass
neither directories nor symlinks.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from confcom.devices.host import Host
from confcom.devices.sgx_node import (
    MIB,
    DriverDevice,
    EpcPool,
    PoolSection,
    SgxNode,
    numa_node_of,
    plan_pool,
    prefer_one_node,
)
from confcom.errors import PlatformUnavailable, PolicyError, RemoteProtocolError
from confcom.protocols.aesm import FOLDER, SOCKET, VARIABLE
from confcom.protocols.epc import (
    CANONICAL,
    ENCLAVE,
    EPC_CAPACITY,
    HELPER,
    HELPER_EPC,
    HOLDERS_CAPACITY,
    KIND_ATTRIBUTE,
    PROVISION,
    AllocatedDevice,
    SharedDevice,
)
from confcom.protocols.kubelet import ContainerAllocateResponse, Holder, ListAndWatchResponse, Mount, list_devices

SIZE_VARIABLE = "SGX_EPC_MIB"
"""Environment variable with the MiB that a container was given: a size, never ids."""
ANY_NAMESPACE = "*"
HELPERS = 2
"""Quote helpers of a node at a time: the present one, and a successor that proves itself beside it."""
PATIENCE = 60.0
"""Seconds for which a helper may be away before pods are no longer sent to this node."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a resource at one moment. `reason` says why all of them are unhealthy, or is empty."""

    devices: ListAndWatchResponse
    node: SgxNode
    reason: str = ""


class DeviceResource:
    """One extended resource: what there is of it, and what a container gets with it."""

    __slots__ = ()
    name: str
    """`domain/word`."""
    endpoint: str
    """A word for its socket's file name."""
    prefers: bool = False
    """Whether `prefer` has a preference at all."""
    essential: bool = True
    """Whether the plugin is not ready while it is unhealthy."""
    guarded: bool = False
    """Whether the pods that may have it are checked before each start of a container."""

    def inventory(self, node: SgxNode) -> Inventory:
        """The devices that this node offers now."""
        raise NotImplementedError

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> Sequence[str]:
        """Which ids a container should get: by default the first that are available."""
        return list(dict.fromkeys([*must_include, *available]))[: max(size, len(must_include))]

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocateResponse:
        """What the container that gets these ids sees; the caller has checked that they are in the inventory."""
        raise NotImplementedError

    def _slots(self, count: int, node: SgxNode, reason: str) -> Inventory:
        """As many devices, named after the endpoint."""
        ids = (f"{self.endpoint}-{number}" for number in range(count))
        return Inventory(list_devices(ids, healthy=not reason), node, reason)


def allocation(
    host: Host, *devices: DriverDevice, environment: Mapping[str, str] | None = None
) -> ContainerAllocateResponse:
    """What a container gets: each device under all its names, and variables.

    A stand-in is no device: it comes as a file, read-only.
    """
    found = ContainerAllocateResponse(envs=environment)
    for device in devices:
        path = host.outside(device.file.path)
        for alias in device.aliases:
            if device.file.is_stand_in:
                found.mounts.add(host_path=path, container_path=alias, read_only=True)
            else:
                found.devices.add(host_path=path, container_path=alias, permissions="rw")
    return found


@dataclass(slots=True)
class DeviceSlots(DeviceResource):
    """A device that any number of containers may share, offered to `count` of them at a time.

    The enclave device is a resource of its own where EPC is published in the node's status. The provisioning device
    lets an enclave have the platform's provisioning key: it is offered only when the operator says so, to pods of the
    namespaces that the operator names. `guarded`: the node checks the namespace itself before each start.
    """

    host: Host
    endpoint: Literal["enclave", "provision"]
    count: int
    name: str = ""
    guarded: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or {"enclave": ENCLAVE, "provision": PROVISION}[self.endpoint]

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, all of them as healthy as the device."""
        return self._slots(self.count, node, node.why_missing(self.endpoint))

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocateResponse:
        """The one device, under its names; more than one slot brings no more."""
        del ids
        return allocation(self.host, inventory.node.device(self.endpoint))


@dataclass(slots=True)
class EpcUnits(DeviceResource):
    """EPC as one device per MiB, with the enclave device. Several NUMA nodes make it prefer units of one."""

    host: Host
    name: str = CANONICAL
    reserve_mib: int = 0
    overcommit: float = 1.0
    prefers: bool = True
    endpoint: str = "epc"

    def pool(self, node: SgxNode) -> EpcPool:
        """What of the node's EPC may be requested."""
        return plan_pool(node.epc.sections, reserve_mib=self.reserve_mib, overcommit=self.overcommit)

    def inventory(self, node: SgxNode) -> Inventory:
        """A device per MiB; all of them are as healthy as the driver."""
        reason = "; ".join(node.obstacles)
        return Inventory(_units(self.pool(node), node.epc.numa_nodes > 1, not reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> Sequence[str]:
        """Units of one NUMA node where possible."""
        return prefer_one_node(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocateResponse:
        """The enclave device under its names, and the size in the environment."""
        return allocation(self.host, inventory.node.device("enclave"), environment={SIZE_VARIABLE: str(len(ids))})


@lru_cache(maxsize=4)  # the pool hardly ever changes, and a large one takes a while to list
def _units(pool: EpcPool, topology: bool, healthy: bool) -> ListAndWatchResponse:
    ids = (unit for section in pool.sections for unit in section.ids)
    return list_devices(ids, healthy=healthy, numa_node=numa_node_of if topology else None)


@dataclass(slots=True)
class HelperEpc(DeviceResource):
    """EPC of the node's quote helpers, `mib` each, one device per MiB, with both SGX devices.

    Applications cannot use it up, so a successor starts on a node where all EPC is requested. `held` is what helpers
    have now: beside one that asked for more, by earlier settings, there is room for a successor all the same.
    """

    host: Host
    mib: int
    name: str = HELPER_EPC
    endpoint: str = "quote-helper-epc"
    guarded: bool = True
    held: int = 0

    @property
    def reserve_mib(self) -> int:
        """What has to be taken from the pool of applications."""
        return HELPERS * self.mib

    def inventory(self, node: SgxNode) -> Inventory:
        """A device per MiB, as healthy as both devices of the driver."""
        reason = "; ".join(node.obstacles) or node.why_missing("provision")
        return self._slots(max(self.reserve_mib, self.held + self.mib), node, reason)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocateResponse:
        """Both devices under their names, and the size in the environment."""
        devices = (inventory.node.device("enclave"), inventory.node.device("provision"))
        return allocation(self.host, *devices, environment={SIZE_VARIABLE: str(len(ids))})


class HelperSlots(DeviceResource):
    """The way to the node's quote helper: a container that requests it finds the helper's folder mounted.

    A pod needs no volume for that, so it may run where Pod Security forbids volumes of the host. The mount is
    read-only: enough to connect to the socket, and no container can replace the socket for others. Only containers that
    request it get it: an image may have a service of its own in this place.

    There are `count` slots; `folder` is seen here under the path that it has on the host. The kubelet fails pods that
    arrive just after slots became unhealthy. So when the socket of a helper is gone, the slots stay healthy for
    `patience` seconds. Not so without the folder: a container runtime would make an empty one, or fail.
    """

    endpoint = "quote-helper"
    essential = False

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        name: str = HELPER,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._folder = folder
        self._count = count
        self._patience = patience
        self._clock = clock
        self._seen: float | None = None

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, healthy while a helper is there or may be back soon; what there is of SGX does not matter."""
        return self._slots(self._count, node, self._why_no_folder() or self._why_no_helper())

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocateResponse:
        """The folder, read-only, and the variable that makes Intel's library ask there."""
        del ids
        if inventory.reason:
            raise PlatformUnavailable(inventory.reason)
        mount = Mount(host_path=str(self._folder), container_path=FOLDER, read_only=True)
        return ContainerAllocateResponse(mounts=[mount], envs={VARIABLE: "1"})

    def _why_no_folder(self) -> str:
        try:
            links = self._folder.stat().st_nlink
        except OSError as error:
            return f"{self._folder}: {error.strerror}"
        if links:
            return ""
        # This process holds the folder that was mounted here; under its path on the node there may be another by now.
        return f"{self._folder} was removed from the node: restart the device plugin and the helper there"

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


def check_holder(
    ids: Sequence[str], held: Mapping[Holder, Sequence[str]], *, resource: str, namespaces: Collection[str]
) -> str:
    """Which pod (`namespace/name`) holds these ids; a `PolicyError` unless its namespace may have them.

    `held` has the ids of each container that holds some of `resource`.
    """
    if ANY_NAMESPACE in namespaces:
        return "any"
    wanted = set(ids)
    found = [holder for holder, units in held.items() if not wanted.isdisjoint(units)]
    if not found:
        raise PolicyError(
            f"no pod is known to hold {resource}, so its namespace cannot be checked",
            advice="Ordinary init containers cannot have this resource: the kubelet does not list their pods.",
        )
    for holder in found:
        if holder.namespace not in namespaces:
            raise PolicyError(
                f"namespace {holder.namespace} (pod {holder.pod}) may not have {resource}",
                advice="Give it to the quote helper only."
                if resource == HELPER_EPC
                else "Add the namespace to provision_namespaces of the device plugin if its pods shall hold the "
                "provisioning privilege.",
            )
    return f"{found[0].namespace}/{found[0].pod}"


EPC_DEVICE = "epc"
PROVISION_DEVICE = "provision"
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}")


@dataclass(frozen=True, slots=True)
class DraDevices:
    """What a node offers to claims, and what a container gets by it. `holders` 0: no claim gets provisioning."""

    host: Host
    holders: int = 0
    namespaces: Collection[str] = ()

    def offered(self, pool: EpcPool, node: SgxNode) -> tuple[SharedDevice, ...]:
        """The devices that claims may have now: those of which the driver's device is there."""
        epc = [] if node.obstacles else [self._epc(section, pool, node) for section in pool.sections if section.units]
        if self.holders and not node.why_missing("provision"):
            epc.append(
                SharedDevice(PROVISION_DEVICE, HOLDERS_CAPACITY, self.holders, 1, self._about("provision", node))
            )
        return tuple(epc)

    def known(self, pool: EpcPool) -> tuple[str, ...]:
        """Names of all devices, whether they can be had now or not."""
        names = [_epc_name(section) for section in pool.sections if section.units]
        return (*names, PROVISION_DEVICE) if self.holders else tuple(names)

    def why_missing(self, name: str, node: SgxNode) -> str:
        """Why a device cannot be had now; empty when it can."""
        return node.why_missing("provision") if name == PROVISION_DEVICE else "; ".join(node.obstacles)

    def grant(
        self, chosen: Sequence[AllocatedDevice], node: SgxNode, *, namespace: str
    ) -> tuple[ContainerAllocateResponse, ...]:
        """What each chosen device brings into the containers of a claim in `namespace`, in order.

        Devices of one request come together, so each of them states the request's whole amount. A `PolicyError` for
        what the claim may not have.
        """
        return tuple(self._grant(device, chosen, node, namespace) for device in chosen)

    def _grant(
        self, device: AllocatedDevice, chosen: Sequence[AllocatedDevice], node: SgxNode, namespace: str
    ) -> ContainerAllocateResponse:
        if device.device == PROVISION_DEVICE:
            self._check_namespace(namespace)
            return allocation(self.host, node.device("provision"))
        if device.device.split("-")[0] != EPC_DEVICE:
            raise RemoteProtocolError(f"there is no device {device.device[:64]!r} here")
        if device.admin:
            raise PolicyError(
                "admin access brings no EPC: it would not be counted",
                advice="Claim an amount without adminAccess.",
            )
        size = sum(other.amounts.get(EPC_CAPACITY, 0) for other in chosen if other.request == device.request)
        return allocation(self.host, node.device("enclave"), environment={SIZE_VARIABLE: str(size // MIB)})

    def _check_namespace(self, namespace: str) -> None:
        if not self.holders or not ({ANY_NAMESPACE, namespace} & set(self.namespaces)):
            raise PolicyError(
                f"claims of namespace {namespace} may not have the provisioning device",
                advice="Add the namespace to provision_namespaces of the device plugin if its pods shall hold the "
                "provisioning privilege.",
            )

    def _epc(self, section: PoolSection, pool: EpcPool, node: SgxNode) -> SharedDevice:
        attributes: dict[str, str | int | bool] = dict(self._about("epc", node))
        attributes |= {"trueMiB": section.true_mib, "overcommit": f"{pool.overcommit:g}"}
        if section.numa_node is not None:
            attributes["numaNode"] = section.numa_node
        return SharedDevice(_epc_name(section), EPC_CAPACITY, section.units * MIB, MIB, attributes)

    def _about(self, kind: str, node: SgxNode) -> dict[str, str | int | bool]:
        return {KIND_ATTRIBUTE: kind, "driver": node.driver.kind, "simulated": self.host.stand_ins}


def _epc_name(section: PoolSection) -> str:
    return EPC_DEVICE if section.numa_node is None else f"{EPC_DEVICE}-node{section.numa_node}"


@dataclass(frozen=True, slots=True)
class CdiFolder:
    """The runtime's CDI folder: one file of ours per claim, named after `prefix` and the claim's UID.

    The files survive this process, and are the record of what is prepared.
    """

    path: Path
    prefix: str

    def write(self, uid: str, content: bytes) -> None:
        """Make the claim's file, or replace it, in one step; `PlatformUnavailable` if that cannot be done."""
        target = self._file(uid)
        # The runtime reads *.json only: it ignores a draft, even after a crash.
        draft = target.with_name(f".{target.stem}.{secrets.token_hex(4)}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.chmod(0o644)
            draft.rename(target)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise PlatformUnavailable(
                f"cannot write {target}: {error.strerror}",
                retryable=True,
                advice="The runtime's CDI directory (/var/run/cdi) has to be mounted where cdi_dir says.",
            ) from error

    def remove(self, uid: str) -> bool:
        """Take the claim's file away; says whether there was one."""
        target = self._file(uid)
        try:
            target.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PlatformUnavailable(f"cannot remove {target}: {error.strerror}", retryable=True) from error
        return True

    def uids(self) -> frozenset[str]:
        """The claims that have a file."""
        found = (path.name for path in self.path.glob(f"{self.prefix}_*.json"))
        return frozenset(name.removeprefix(f"{self.prefix}_").removesuffix(".json") for name in found)

    def _file(self, uid: str) -> Path:
        if _UID.fullmatch(uid) is None:
            raise RemoteProtocolError(f"{uid[:64]!r} is no UID of a claim")
        return self.path / f"{self.prefix}_{uid}.json"
