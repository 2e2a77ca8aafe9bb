"""What pods and nodes of the Kubernetes API say about EPC; pure, from the API's JSON.

Everything else in these objects is ignored. Objects come from an API server, but every user who may create pods wrote
some of their content, so nothing is assumed but that they are JSON.

With dynamic resource allocation (resource.k8s.io/v1), a ResourceSlice says which devices a node has, a DeviceClass
which of all devices a claim may choose from, and the allocation in a ResourceClaim what the scheduler chose. Fields:
Kubernetes 1.36, with consumable capacity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeAlias, TypeVar
from zlib import crc32

import msgspec

from confcom.errors import FormatError

_SUFFIXES: Mapping[str, Fraction] = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15),
    "E": Fraction(10**18), "Ki": Fraction(1 << 10), "Mi": Fraction(1 << 20), "Gi": Fraction(1 << 30),
    "Ti": Fraction(1 << 40), "Pi": Fraction(1 << 50), "Ei": Fraction(1 << 60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?)([0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)"
)


def in_mib(size: float) -> str:
    """A size in bytes for people: `1,024.5 MiB`."""
    return f"{size / MIB:,.1f}".removesuffix(".0") + " MiB"


def parse_quantity(text: str) -> Fraction:
    """A Kubernetes Quantity, such as `1k` for 1000 or `512Gi`; `FormatError` for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise FormatError(f"{text[:40]!r} is no quantity", structure="Quantity", field="")
    sign, digits, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Fraction(digits) * scale * (-1 if sign == "-" else 1)


MIB = 1 << 20
CANONICAL = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
"""What the device plugin publishes, and into which admission translates the others."""
EPC_UNITS: Mapping[str, int] = {
    CANONICAL: MIB,
    "sgx.intel.com/sgx_epc_mem_in_MiB": MIB,
    "sgx.intel.com/epc": 1,
    "alibabacloud.com/sgx_epc_MiB": MIB,
}
"""Name of the resource to bytes per unit."""
HELPER_EPC = "sgx.confcom.dev/quote-helper-epc"
"""EPC of the quote helper's own enclaves, in MiB, beside the pool of applications; it brings both devices."""
ENCLAVE = "sgx.intel.com/enclave"
"""The resource that brings a container the enclave device."""
PROVISION = "sgx.intel.com/provision"
"""The resource that brings a container the provisioning device."""
HELPER = "sgx.confcom.dev/quote-helper"
"""The resource that brings a container to the quote helper."""
CLASS_PREFIX = "deviceclass.resource.kubernetes.io/"
"""Before the name of a DeviceClass: a resource for which the scheduler makes a claim of so many devices."""


def requested_epc(amounts: Mapping[str, str], units: Mapping[str, int] = EPC_UNITS) -> int | None:
    """Bytes of EPC in a list of resources such as a container's limits; None if there is nothing of it.

    Several names in one list are the same EPC under several names, so the largest counts. An amount that is no Quantity
    counts as none: the API server would not have taken it.
    """
    found = [bytes_of(name, amount, units) for name, amount in amounts.items() if name in units]
    return max((size for size in found if size is not None), default=None)


def start_parts(together: int, starts: Iterable[tuple[int, bool]]) -> list[int]:
    """What each init container adds to what the scheduler counts for a pod; `together` is that of its containers.

    Init containers run one after another before the others, so the largest counts, and only with what exceeds all the
    others. A sidecar (the second of each pair) stays, so it counts in full, beside all that start after it.
    """
    parts: list[int] = []
    sidecars = most = largest = 0
    for number, (size, stays) in enumerate(starts):
        parts.append(size if stays else 0)
        if stays:
            sidecars += size
        elif sidecars + size > most:
            most, largest = sidecars + size, number
    if (excess := most - together - sidecars) > 0:
        parts[largest] = excess
    return parts


def bytes_of(name: str, amount: str, units: Mapping[str, int] = EPC_UNITS) -> int | None:
    """Bytes that an amount of one resource means, rounded up; None if it is no Quantity, or negative."""
    try:
        size = parse_quantity(amount) * units[name]
    except FormatError:
        return None
    return None if size < 0 else -int(-size // 1)


# What the device plugin reads and writes of its own node.

TRUE_SIZE_LABEL = "confcom.dev/sgx-epc-mib"
"""MiB of EPC of the node."""
OVERCOMMIT_LABEL = "confcom.dev/sgx-epc-overcommit"
"""Ratio of requestable EPC to true EPC without the reserve."""
BOOT_ANNOTATION = "confcom.dev/sgx-epc-boot"
"""Boot id of the node when the true size was found: until the next boot the size may only fall."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Parts of a Node object: amounts as Quantities, labels, annotations, boot id."""

    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""


_Form = TypeVar("_Form", bound=msgspec.Struct)

_UNITS = {**EPC_UNITS, HELPER_EPC: MIB}


@dataclass(frozen=True, slots=True)
class EpcContainer:
    """A container of a pod. `requested` is in bytes, None if it asks for no EPC in its resources.

    `id` is the runtime's, empty until it has started. `claims` names the ResourceClaims that it uses. `scheduled` is
    its part of what the scheduler counts for the pod: of init containers, only what they need beyond the others.
    """

    name: str
    id: str = ""
    requested: int | None = None
    claims: tuple[str, ...] = ()
    scheduled: int = 0


@dataclass(frozen=True, slots=True)
class EpcPod:
    """A pod. `requested` is what the scheduler counts for it, in bytes; `finished` pods hold nothing any more.

    It is the sum of what is `scheduled` for the containers, and of the pod's `overhead` (of its runtime class).
    """

    uid: str
    namespace: str
    name: str
    node: str = ""
    finished: bool = False
    requested: int = 0
    overhead: int = 0
    containers: tuple[EpcContainer, ...] = ()
    labels: dict[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class EpcNode:
    """A node. `allocatable` is the EPC that pods may request, in bytes; None if it publishes none.

    `helper` of it is kept for the quote helper and its successor: applications cannot request that part.
    """

    name: str
    allocatable: int | None = None
    helper: int = 0


class _Claim(msgspec.Struct):
    name: str
    resourceClaimName: str | None = None  # noqa: N815 - as the API spells it


class _Resources(msgspec.Struct):
    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None
    claims: list[_Claim] | None = None


class _Container(msgspec.Struct):
    name: str
    resources: _Resources | None = None
    restartPolicy: str | None = None  # noqa: N815


class _ContainerStatus(msgspec.Struct):
    name: str
    containerID: str | None = None  # noqa: N815


class _Mapping(msgspec.Struct, rename="camel"):
    container_name: str


class _ExtendedClaim(msgspec.Struct, rename="camel"):
    resource_claim_name: str
    request_mappings: list[_Mapping] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    ephemeral_containers: list[_Container] | None = None
    node_name: str | None = None
    resource_claims: list[_Claim] | None = None
    overhead: dict[str, str | int | float] | None = None


class _Status(msgspec.Struct, rename="camel"):
    phase: str | None = None
    container_statuses: list[_ContainerStatus] | None = None
    init_container_statuses: list[_ContainerStatus] | None = None
    ephemeral_container_statuses: list[_ContainerStatus] | None = None
    resource_claim_statuses: list[_Claim] | None = None
    extended_resource_claim_status: _ExtendedClaim | None = None


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _Status | None = None


class _NodeStatus(msgspec.Struct):
    allocatable: dict[str, str | int | float] | None = None


class _Node(msgspec.Struct):
    metadata: _Metadata
    status: _NodeStatus | None = None


def parse_pod(document: Any) -> EpcPod:  # noqa: ANN401 - JSON
    """A Pod object as the API serves it; `FormatError` says what is not as it should be."""
    form = _convert(document, _Pod, "Pod")
    status = form.status or _Status()
    statuses = (status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses)
    # containerd://ID, cri-o://ID, docker://ID
    ids = {one.name: (one.containerID or "").rpartition("://")[2] for group in statuses for one in group or ()}
    claims = {one.name: one.resourceClaimName for one in form.spec.resource_claims or ()}
    claims |= {one.name: one.resourceClaimName for one in status.resource_claim_statuses or ()}
    made = _made_claims(status.extended_resource_claim_status)
    scheduled, overhead = _scheduled(form.spec), _amount(form.spec.overhead or {}) or 0
    return EpcPod(
        uid=form.metadata.uid,
        namespace=form.metadata.namespace,
        name=form.metadata.name,
        node=form.spec.node_name or "",
        finished=status.phase in ("Succeeded", "Failed"),
        requested=sum(scheduled.values()) + overhead,
        overhead=overhead,
        containers=tuple(
            EpcContainer(
                one.name,
                ids.get(one.name, ""),
                _requested(one),
                (*_claims(one, claims), *made.get(one.name, ())),
                scheduled.get(one.name, 0),
            )
            for one in (
                *(form.spec.containers or ()),
                *(form.spec.init_containers or ()),
                *(form.spec.ephemeral_containers or ()),
            )
        ),
        labels=form.metadata.labels or {},
    )


def parse_node(document: Any, resource: str = CANONICAL) -> EpcNode:  # noqa: ANN401 - JSON
    """A Node object; of the names of one pool only the one that the device plugin publishes counts.

    The quote helper's part of the EPC is beside that pool, and counts too.
    """
    form = _convert(document, _Node, "Node")
    offered = (form.status and form.status.allocatable) or {}
    units = {resource: EPC_UNITS.get(resource, MIB), HELPER_EPC: MIB}
    sizes = {name: bytes_of(name, str(offered[name]), units) for name in units if name in offered}
    known = [size for size in sizes.values() if size is not None]
    return EpcNode(form.metadata.name, sum(known) if known else None, sizes.get(HELPER_EPC) or 0)


def _convert(document: Any, kind: type[_Form], name: str) -> _Form:  # noqa: ANN401 - JSON
    try:
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise FormatError(str(error), structure=name, field="") from None


def _requested(container: _Container) -> int | None:
    resources = container.resources or _Resources()
    # For extended resources requests equal limits; either may be left out when a pod is written.
    return _amount({**(resources.requests or {}), **(resources.limits or {})})


def _amount(amounts: Mapping[str, str | int | float]) -> int | None:
    return requested_epc({name: str(amount) for name, amount in amounts.items()}, _UNITS)


def _claims(container: _Container, names: dict[str, str | None]) -> Iterator[str]:
    resources = container.resources or _Resources()
    for claim in resources.claims or ():
        if name := names.get(claim.name):
            yield name


def _made_claims(found: _ExtendedClaim | None) -> dict[str, tuple[str, ...]]:
    """The claim that the scheduler made for extended resources of device classes, by the containers that use it."""
    if found is None:
        return {}
    return {one.container_name: (found.resource_claim_name,) for one in found.request_mappings or ()}


def _scheduled(spec: _Spec) -> dict[str, int]:
    """Bytes that the scheduler counts, by container."""
    containers, starts = spec.containers or [], spec.init_containers or []
    sizes = [_requested(one) or 0 for one in containers]
    parts = start_parts(sum(sizes), [(_requested(one) or 0, one.restartPolicy == "Always") for one in starts])
    return dict(zip((one.name for one in (*containers, *starts)), (*sizes, *parts), strict=True))


DRA_DRIVER = "sgx.confcom.dev"
DRA_VERSION = "resource.k8s.io/v1"
EPC_CLASS = "sgx-epc.confcom.dev"
PROVISION_CLASS = "sgx-provision.confcom.dev"
KIND_ATTRIBUTE = "kind"
EPC_CAPACITY = "epc"
"""Bytes of EPC."""
HOLDERS_CAPACITY = "holders"
"""Claims that may hold the provisioning device at a time."""
MAX_SLICE_NAME = 253
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
    chosen = f'device.driver == "{DRA_DRIVER}" && device.attributes["{DRA_DRIVER}"].{KIND_ATTRIBUTE} == "{kind}"'
    return {
        "apiVersion": DRA_VERSION,
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": chosen}}]},
    }


def slice_name(node: str) -> str:
    """The name of a node's slice: the same every time, so that there is only one."""
    name = f"{node}-{DRA_DRIVER}"
    return name if len(name) <= MAX_SLICE_NAME else f"{node[:200].rstrip('.-')}-{crc32(node.encode()):08x}-{DRA_DRIVER}"


def resource_slice(node: str, devices: Sequence[SharedDevice], *, generation: int, owner: str = "") -> dict[str, Any]:
    """A node's ResourceSlice; `owner` is the UID of the Node object, which takes the slice along when it goes."""
    metadata: dict[str, Any] = {"name": slice_name(node)}
    if owner:
        reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner}
        metadata["ownerReferences"] = [reference]
    return {
        "apiVersion": DRA_VERSION,
        "kind": "ResourceSlice",
        "metadata": metadata,
        "spec": {
            "driver": DRA_DRIVER,
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
        ours = [result for result in results if result["driver"] == DRA_DRIVER][:MAX_RESULTS]
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
        name.removeprefix(f"{DRA_DRIVER}/"): int(parse_quantity(amount))
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
