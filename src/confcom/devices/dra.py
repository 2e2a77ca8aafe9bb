"""EPC as devices of dynamic resource allocation: one per NUMA node, shared by amount, without a device per unit.

Pool, reserve and overcommit are those of every other publisher. The provisioning device is one more, of another kind,
for claims of named namespaces alone. What a prepared claim brings is a file in the container runtime's CDI folder.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from confcom.devices.host import Host
from confcom.devices.resources import ANY_NAMESPACE, SIZE_VARIABLE, allocation
from confcom.devices.sgx_node import MIB, EpcPool, PoolSection, SgxNode
from confcom.errors import PlatformUnavailable, PolicyError, RemoteProtocolError
from confcom.protocols.dra_objects import (
    EPC_CAPACITY,
    HOLDERS_CAPACITY,
    KIND_ATTRIBUTE,
    AllocatedDevice,
    SharedDevice,
)
from confcom.protocols.kubelet import ContainerAllocateResponse

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
