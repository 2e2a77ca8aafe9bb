"""The kubelet's gRPC APIs for plugins: the generated messages, and each service's calls as a table; no sockets.

Device plugins (v1beta1), the registry of plugins (v1), podresources (v1), DRA drivers (v1) and their health (v1alpha1).
Field numbers and names are those of `proto/`, which follow Kubernetes 1.36. The kubelet takes messages up to
`MAX_MESSAGE`, exact to the byte. What a prepared claim brings into containers is a CDI file, for the container runtime.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from confcom.errors import FormatError
from confcom.protocols._pb.kubelet_device_plugin_pb2 import (
    AllocateRequest,
    AllocateResponse,
    ContainerAllocateResponse,
    DevicePluginOptions,
    DeviceSpec,
    Empty,
    ListAndWatchResponse,
    Mount,
    PreferredAllocationRequest,
    PreferredAllocationResponse,
    PreStartContainerRequest,
    RegisterRequest,
)
from confcom.protocols._pb.kubelet_dra_health_pb2 import (
    HEALTHY,
    UNHEALTHY,
    DeviceHealth,
    DeviceIdentifier,
    NodeWatchResourcesRequest,
    NodeWatchResourcesResponse,
)
from confcom.protocols._pb.kubelet_dra_pb2 import (
    Claim,
    NodePrepareResourceResponse,
    NodePrepareResourcesRequest,
    NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse,
    NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
)
from confcom.protocols._pb.kubelet_dra_pb2 import (
    Device as PreparedDevice,
)
from confcom.protocols._pb.kubelet_plugin_registration_pb2 import InfoRequest, PluginInfo, RegistrationStatus
from confcom.protocols._pb.kubelet_podresources_pb2 import ListPodResourcesResponse

__all__ = [
    "AllocateRequest",
    "AllocateResponse",
    "Claim",
    "ContainerAllocateResponse",
    "DeviceHealth",
    "DevicePluginOptions",
    "DeviceSpec",
    "Empty",
    "InfoRequest",
    "ListAndWatchResponse",
    "ListPodResourcesResponse",
    "Mount",
    "NodePrepareResourceResponse",
    "NodePrepareResourcesRequest",
    "NodePrepareResourcesResponse",
    "NodeUnprepareResourceResponse",
    "NodeUnprepareResourcesRequest",
    "NodeUnprepareResourcesResponse",
    "NodeWatchResourcesRequest",
    "NodeWatchResourcesResponse",
    "PluginInfo",
    "PreStartContainerRequest",
    "PreferredAllocationRequest",
    "PreferredAllocationResponse",
    "PreparedDevice",
    "RegisterRequest",
    "RegistrationStatus",
]

VERSION = "v1beta1"
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message that the kubelet takes: gRPC's default. At one byte more it closes the stream silently."""
DEVICE_OVERHEAD = 13
"""Bytes of a healthy device in ListAndWatch beside its id."""
TOPOLOGY_OVERHEAD = 6
"""Bytes more when it names a NUMA node below 128 (4 for node 0)."""
MAX_DEVICE_ID = 63
"""Characters of a device's id."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Method:
    """One call: `path` as on the wire, the types of both messages; `streams` when answers keep coming."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool = False


REGISTER = Method("/v1beta1.Registration/Register", RegisterRequest, Empty)
GET_OPTIONS = Method("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty, DevicePluginOptions)
LIST_AND_WATCH = Method("/v1beta1.DevicePlugin/ListAndWatch", Empty, ListAndWatchResponse, streams=True)
GET_PREFERRED_ALLOCATION = Method(
    "/v1beta1.DevicePlugin/GetPreferredAllocation", PreferredAllocationRequest, PreferredAllocationResponse
)
ALLOCATE = Method("/v1beta1.DevicePlugin/Allocate", AllocateRequest, AllocateResponse)
PRE_START_CONTAINER = Method("/v1beta1.DevicePlugin/PreStartContainer", PreStartContainerRequest, Empty)
GET_INFO = Method("/pluginregistration.Registration/GetInfo", InfoRequest, PluginInfo)
NOTIFY_REGISTRATION_STATUS = Method(
    "/pluginregistration.Registration/NotifyRegistrationStatus", RegistrationStatus, Empty
)
LIST = Method("/v1.PodResourcesLister/List", Empty, ListPodResourcesResponse)
"""The answer may be longer than gRPC's usual limit. Ordinary init containers are not listed."""


def parse(kind: type[M], data: bytes) -> M:
    """A message of its bytes; unknown fields are skipped. `FormatError` for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise FormatError(str(error), structure=kind.__name__, field="") from error


def list_devices(
    ids: Iterable[str], *, healthy: bool, numa_node: Callable[[str], int | None] | None = None
) -> ListAndWatchResponse:
    """All devices of a resource, which replace those of the message before. A node of None: none is nearer."""
    message = ListAndWatchResponse()
    health = "Healthy" if healthy else "Unhealthy"
    for device_id in ids:
        device = message.devices.add(ID=device_id, health=health)
        node = None if numa_node is None else numa_node(device_id)
        if node is not None:
            device.topology.nodes.add(ID=node)
    return message


def list_and_watch_size(count: int, id_length: int, *, topology: bool) -> int:
    """Bytes of a ListAndWatch message of that many healthy devices, at most (exact without topology)."""
    return count * (DEVICE_OVERHEAD + id_length + (TOPOLOGY_OVERHEAD if topology else 0))


class Holder(NamedTuple):
    """A container that holds devices."""

    namespace: str
    pod: str
    container: str


def holders(listed: ListPodResourcesResponse, resource: str) -> Mapping[Holder, list[str]]:
    """The ids that each container holds of a resource; the kubelet lists a container once per device."""
    found: dict[Holder, list[str]] = {}
    for pod in listed.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name == resource:
                    found.setdefault(Holder(pod.namespace, pod.name, container.name), []).extend(devices.device_ids)
    return found


# DRA drivers. The kubelet calls us; it finds our socket in its registry directory and asks who it is.

DRA_PLUGIN_TYPE = "DRAPlugin"
DRA_SERVICE = "v1.DRAPlugin"
"""What the registration lists as supported."""
MAX_REASON = 1024
"""Characters of a reason in the health of a device."""

_DRA = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
PREPARE = Method(f"{_DRA}/NodePrepareResources", NodePrepareResourcesRequest, NodePrepareResourcesResponse)
UNPREPARE = Method(f"{_DRA}/NodeUnprepareResources", NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse)
WATCH_HEALTH = Method(
    "/v1alpha1.DRAResourceHealth/NodeWatchResources",
    NodeWatchResourcesRequest,
    NodeWatchResourcesResponse,
    streams=True,
)


def device_health(pool: str, device: str, reason: str, *, known: int, timeout: int) -> DeviceHealth:
    """Healthy unless there is a reason; `known` in seconds since 1970, after which it counts for `timeout` seconds."""
    return DeviceHealth(
        device=DeviceIdentifier(pool_name=pool, device_name=device),
        health=UNHEALTHY if reason else HEALTHY,
        last_updated_time=known,
        health_check_timeout_seconds=timeout,
        message=reason[:MAX_REASON],
    )


CDI_VERSION = "0.6.0"
"""Of the container device interface's specification: the first with annotations (`hostPath` came with 0.5.0)."""
DEVICE_MODE = 0o666
"""Every user of a container that was given a device may open it, as containerd does where no mode is given."""
MOUNT_OPTIONS = ("bind", "nosuid", "nodev")


def cdi_spec(kind: str, devices: Mapping[str, ContainerAllocateResponse], annotations: Mapping[str, str]) -> bytes:
    """The content of a CDI file for devices of one kind (`vendor/class`), by name."""
    spec = {
        "cdiVersion": CDI_VERSION,
        "kind": kind,
        "annotations": dict(annotations),
        "devices": [{"name": name, "containerEdits": _edits(brought)} for name, brought in devices.items()],
    }
    return json.dumps(spec, indent=1).encode() + b"\n"


def _edits(brought: ContainerAllocateResponse) -> dict[str, Any]:
    edits: dict[str, Any] = {
        "env": [f"{name}={value}" for name, value in sorted(brought.envs.items())],
        "deviceNodes": [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "permissions": node.permissions,
                "fileMode": DEVICE_MODE,
            }
            for node in brought.devices
        ],
        "mounts": [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": [*MOUNT_OPTIONS, *(["ro"] if mount.read_only else [])],
            }
            for mount in brought.mounts
        ],
    }
    return {name: entries for name, entries in edits.items() if entries}
