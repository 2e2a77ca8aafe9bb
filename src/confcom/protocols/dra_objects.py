"""The objects of Kubernetes' dynamic resource allocation (resource.k8s.io/v1) that EPC needs, as JSON; pure.

A ResourceSlice says which devices a node has, a DeviceClass which of all devices a claim may choose from, and the
allocation in a ResourceClaim what the scheduler chose. Fields: Kubernetes 1.36, with consumable capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from zlib import crc32

from confcom.errors import FormatError
from confcom.protocols.epc import parse_quantity

DRIVER = "sgx.confcom.dev"
API_VERSION = "resource.k8s.io/v1"
EPC_CLASS = "sgx-epc.confcom.dev"
PROVISION_CLASS = "sgx-provision.confcom.dev"
KIND_ATTRIBUTE = "kind"
EPC_CAPACITY = "epc"
"""Bytes of EPC."""
HOLDERS_CAPACITY = "holders"
"""Claims that may hold the provisioning device at a time."""
MAX_NAME = 253
MAX_RESULTS = 32
"""Devices of one claim."""

DeviceKind: TypeAlias = Literal["epc", "provision"]
"""Values of the attribute `kind`."""
Object: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SharedDevice:
    """A device of a slice that claims share by amount. `amount` of `capacity` is what may be claimed, in `step`s."""

    name: str
    capacity: str
    amount: int
    step: int
    attributes: Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class AllocatedDevice:
    """One device that the scheduler chose for a claim. `amounts` of capacities; `share` identifies the sharer."""

    request: str
    pool: str
    device: str
    amounts: Mapping[str, int]
    share: str = ""
    admin: bool = False


def device_class(name: str, kind: DeviceKind) -> dict[str, Any]:
    """A DeviceClass of our driver's devices of one kind."""
    chosen = f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].{KIND_ATTRIBUTE} == "{kind}"'
    return {
        "apiVersion": API_VERSION,
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": chosen}}]},
    }


def slice_name(node: str) -> str:
    """The name of a node's slice: the same every time, so that there is only one."""
    name = f"{node}-{DRIVER}"
    return name if len(name) <= MAX_NAME else f"{node[:200].rstrip('.-')}-{crc32(node.encode()):08x}-{DRIVER}"


def resource_slice(node: str, devices: Sequence[SharedDevice], *, generation: int, owner: str = "") -> dict[str, Any]:
    """A node's ResourceSlice; `owner` is the UID of the Node object, which takes the slice along when it goes."""
    metadata: dict[str, Any] = {"name": slice_name(node)}
    if owner:
        reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner}
        metadata["ownerReferences"] = [reference]
    return {
        "apiVersion": API_VERSION,
        "kind": "ResourceSlice",
        "metadata": metadata,
        "spec": {
            "driver": DRIVER,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": 1},
            "devices": [_device(device) for device in devices],
        },
    }


def slice_devices(found: Object) -> tuple[Object, ...]:
    """The devices of a slice in one spelling, to compare two slices: amounts as plain numbers of bytes."""
    return tuple(_plain(device) for device in found.get("spec", {}).get("devices") or ())


def slice_generation(found: Object) -> int:
    """The generation of the slice's pool."""
    return int(found.get("spec", {}).get("pool", {}).get("generation", 0))


def lost_sharing(found: Object) -> bool:
    """Whether the API server dropped what lets claims share a device, as one does that does not know it."""
    devices = found.get("spec", {}).get("devices") or ()
    return any(not device.get("allowMultipleAllocations") for device in devices)


def allocated_devices(claim: Object) -> tuple[AllocatedDevice, ...]:
    """What the scheduler chose of our driver's devices; `FormatError` when the claim says it in no way that we know."""
    try:
        results = ((claim.get("status") or {}).get("allocation") or {}).get("devices", {}).get("results") or ()
        ours = [result for result in results if result["driver"] == DRIVER][:MAX_RESULTS]
        return tuple(_allocated(result) for result in ours)
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(
            f"unexpected content: {error}", structure="ResourceClaim", field="status.allocation"
        ) from error


def claimed_epc(claim: Object) -> int:
    """Bytes of EPC that the claim was given; `FormatError` as for `allocated_devices`."""
    # The device plugin gives none to admin access.
    return sum(device.amounts.get(EPC_CAPACITY, 0) for device in allocated_devices(claim) if not device.admin)


def _device(device: SharedDevice) -> dict[str, Any]:
    capacity: dict[str, Any] = {"value": _quantity(device.amount)}
    if device.amount >= 2 * device.step:  # the API wants room for one step above the least amount
        step = _quantity(device.step)
        capacity["requestPolicy"] = {"default": step, "validRange": {"min": step, "step": step}}
    return {
        "name": device.name,
        "allowMultipleAllocations": True,
        "attributes": {name: _attribute(value) for name, value in device.attributes.items()},
        "capacity": {device.capacity: capacity},
    }


def _quantity(amount: int) -> str:
    mebibytes, rest = divmod(amount, 1 << 20)
    return str(amount) if rest or not mebibytes else f"{mebibytes}Mi"


def _attribute(value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"bool": value}
    return {"int": value} if isinstance(value, int) else {"string": value}


def _plain(device: Object) -> Object:
    capacity = {
        name: {
            "value": _bytes(entry.get("value")),
            "default": _bytes((entry.get("requestPolicy") or {}).get("default")),
            "range": {
                name: _bytes(value)
                for name, value in ((entry.get("requestPolicy") or {}).get("validRange") or {}).items()
            },
        }
        for name, entry in (device.get("capacity") or {}).items()
    }
    attributes = {
        name: {kind: content for kind, content in value.items() if content is not None}
        for name, value in (device.get("attributes") or {}).items()
    }
    return {
        "name": device.get("name"),
        "shared": bool(device.get("allowMultipleAllocations")),
        "attributes": attributes,
        "capacity": capacity,
    }


def _allocated(result: Object) -> AllocatedDevice:
    amounts = {
        name.removeprefix(f"{DRIVER}/"): int(parse_quantity(amount))
        for name, amount in (result.get("consumedCapacity") or {}).items()
    }
    return AllocatedDevice(
        request=result["request"].split("/")[0],  # of alternatives the container names the main one
        pool=result["pool"],
        device=result["device"],
        amounts=amounts,
        share=result.get("shareID") or "",
        admin=bool(result.get("adminAccess")),
    )


def _bytes(amount: object) -> int | None:
    return None if amount is None else int(parse_quantity(str(amount)))
