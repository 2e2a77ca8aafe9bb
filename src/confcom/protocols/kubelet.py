"""The kubelet's device plugin API v1beta1 as values, and its services as tables; no sockets.

The kubelet is a gRPC client of ours whose receive limit is the library's default: `MAX_MESSAGE`, exact to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from confcom.errors import FormatError
from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb
from confcom.protocols._pb import kubelet_plugin_registration_pb2 as registration_pb
from confcom.protocols._pb import kubelet_podresources_pb2 as podresources_pb

# --- What the kubelet's gRPC services have in common: values that are messages, and calls as a table knows them -------
#
# A value has `parse(bytes)` and `bytes(x)`, like every format here. Bytes that are not the message are a
# `FormatError`.


_Pb = TypeVar("_Pb", bound=Message)


class Value(Protocol):
    """A message of this API."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""

    def __bytes__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Method:
    """One call: `path` as on the wire, what goes in and out; `streams` when answers keep coming."""

    path: str
    request: type[Any]
    response: type[Any]
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Empty:
    """No content."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it; fields that we do not know are skipped."""
        read_message(pb.Empty(), data)
        return cls()

    def __bytes__(self) -> bytes:
        return b""


def read_message(message: _Pb, data: bytes) -> _Pb:
    """Fill a protobuf message; bytes that are none are a `FormatError`."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(str(error), structure=type(message).__name__, field="") from error
    return message


VERSION = "v1beta1"
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message that the kubelet still takes; one more and it closes the stream without telling the plugin."""
DEVICE_OVERHEAD = 13
"""Bytes of a healthy device in ListAndWatch beside its id."""
TOPOLOGY_OVERHEAD = 6
"""Bytes more when it names a NUMA node below 128 (4 for node 0)."""
MAX_DEVICE_ID = 63
"""Characters of a device's id."""


@dataclass(frozen=True, slots=True)
class DevicePluginOptions:
    """What the kubelet shall call: PreStartContainer before each start, GetPreferredAllocation before Allocate."""

    pre_start_required: bool = False
    get_preferred_allocation_available: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.DevicePluginOptions(), data)
        return cls(message.pre_start_required, message.get_preferred_allocation_available)

    def __bytes__(self) -> bytes:
        return self.message().SerializeToString(deterministic=True)

    def message(self) -> pb.DevicePluginOptions:
        """As a part of another message."""
        return pb.DevicePluginOptions(
            pre_start_required=self.pre_start_required,
            get_preferred_allocation_available=self.get_preferred_allocation_available,
        )


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """`endpoint` is the file name of the plugin's socket in the kubelet's directory."""

    endpoint: str
    resource_name: str
    options: DevicePluginOptions = DevicePluginOptions()
    version: str = VERSION

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.RegisterRequest(), data)
        options = DevicePluginOptions(
            message.options.pre_start_required, message.options.get_preferred_allocation_available
        )
        return cls(message.endpoint, message.resource_name, options, message.version)

    def __bytes__(self) -> bytes:
        return pb.RegisterRequest(
            version=self.version,
            endpoint=self.endpoint,
            resource_name=self.resource_name,
            options=self.options.message(),
        ).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a resource. `numa_node` None means that no place is better than another."""

    id: str
    healthy: bool = True
    numa_node: int | None = None


@dataclass(frozen=True, slots=True)
class ListAndWatchResponse:
    """All devices of a resource; each message replaces the one before."""

    devices: tuple[Device, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it; of a topology with several nodes the first counts."""
        return cls(
            tuple(
                Device(
                    entry.ID,
                    entry.health == "Healthy",
                    entry.topology.nodes[0].ID if entry.topology.nodes else None,
                )
                for entry in read_message(pb.ListAndWatchResponse(), data).devices
            )
        )

    def __bytes__(self) -> bytes:
        message = pb.ListAndWatchResponse()
        add = message.devices.add
        for device in self.devices:
            entry = add(ID=device.id, health="Healthy" if device.healthy else "Unhealthy")
            if device.numa_node is not None:
                entry.topology.nodes.add(ID=device.numa_node)
        return message.SerializeToString(deterministic=True)


def list_and_watch_size(count: int, id_length: int, *, topology: bool) -> int:
    """Bytes of a ListAndWatch message of that many healthy devices, at most (exact without topology)."""
    return count * (DEVICE_OVERHEAD + id_length + (TOPOLOGY_OVERHEAD if topology else 0))


@dataclass(frozen=True, slots=True)
class ContainerPreference:
    """What the kubelet could give a container: choose `size` of `available`, all of `must_include` among them."""

    available: tuple[str, ...]
    must_include: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class PreferredAllocationRequest:
    """One entry per container."""

    containers: tuple[ContainerPreference, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.PreferredAllocationRequest(), data)
        return cls(
            tuple(
                ContainerPreference(
                    tuple(entry.available_deviceIDs), tuple(entry.must_include_deviceIDs), entry.allocation_size
                )
                for entry in message.container_requests
            )
        )

    def __bytes__(self) -> bytes:
        message = pb.PreferredAllocationRequest()
        for entry in self.containers:
            message.container_requests.add(
                available_deviceIDs=entry.available,
                must_include_deviceIDs=entry.must_include,
                allocation_size=entry.size,
            )
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class PreferredAllocationResponse:
    """The ids for each container, in the order of the request."""

    containers: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.PreferredAllocationResponse(), data)
        return cls(tuple(tuple(entry.deviceIDs) for entry in message.container_responses))

    def __bytes__(self) -> bytes:
        message = pb.PreferredAllocationResponse()
        for ids in self.containers:
            message.container_responses.add(deviceIDs=ids)
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class AllocateRequest:
    """The ids of each container."""

    containers: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        return cls(
            tuple(tuple(entry.devices_ids) for entry in read_message(pb.AllocateRequest(), data).container_requests),
        )

    def __bytes__(self) -> bytes:
        message = pb.AllocateRequest()
        for ids in self.containers:
            message.container_requests.add(devices_ids=ids)
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character device of the host and where the container sees it; `permissions` of the letters r, w, m."""

    host_path: str
    container_path: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host and where the container sees it."""

    host_path: str
    container_path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerAllocation:
    """What one container gets; `environment` has names and values."""

    devices: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AllocateResponse:
    """In the order of the request."""

    containers: tuple[ContainerAllocation, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.AllocateResponse(), data)
        return cls(tuple(_allocation(entry) for entry in message.container_responses))

    def __bytes__(self) -> bytes:
        message = pb.AllocateResponse()
        for container in self.containers:
            entry = message.container_responses.add(envs=dict(container.environment))
            for node in container.devices:
                entry.devices.add(
                    host_path=node.host_path, container_path=node.container_path, permissions=node.permissions
                )
            for mount in container.mounts:
                entry.mounts.add(
                    host_path=mount.host_path, container_path=mount.container_path, read_only=mount.read_only
                )
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class PreStartContainerRequest:
    """The ids of the container that is about to start."""

    ids: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        return cls(tuple(read_message(pb.PreStartContainerRequest(), data).devices_ids))

    def __bytes__(self) -> bytes:
        return pb.PreStartContainerRequest(devices_ids=self.ids).SerializeToString(deterministic=True)


REGISTER = Method("/v1beta1.Registration/Register", RegisterRequest, Empty)
GET_OPTIONS = Method("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty, DevicePluginOptions)
LIST_AND_WATCH = Method("/v1beta1.DevicePlugin/ListAndWatch", Empty, ListAndWatchResponse, streams=True)
GET_PREFERRED_ALLOCATION = Method(
    "/v1beta1.DevicePlugin/GetPreferredAllocation", PreferredAllocationRequest, PreferredAllocationResponse
)
ALLOCATE = Method("/v1beta1.DevicePlugin/Allocate", AllocateRequest, AllocateResponse)
PRE_START_CONTAINER = Method("/v1beta1.DevicePlugin/PreStartContainer", PreStartContainerRequest, Empty)


def _allocation(entry: pb.ContainerAllocateResponse) -> ContainerAllocation:
    return ContainerAllocation(
        devices=tuple(DeviceNode(node.host_path, node.container_path, node.permissions) for node in entry.devices),
        mounts=tuple(Mount(mount.host_path, mount.container_path, mount.read_only) for mount in entry.mounts),
        environment=tuple(sorted(entry.envs.items())),
    )


# --- The kubelet's podresources API v1, as far as we ask it: which pod holds which devices; no sockets ----------------
#
# It lists what device plugins handed out, of pods whose containers run or are about to; ordinary init containers are
# not listed. The answer may be longer than gRPC's usual limit: the client has to allow for that.


@dataclass(frozen=True, slots=True)
class HeldDevices:
    """What one container holds of one resource."""

    namespace: str
    pod: str
    container: str
    resource: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListPodResourcesResponse:
    """Every holding on the node."""

    held: tuple[HeldDevices, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it; processors, memory and dynamic resources are skipped."""
        message = podresources_pb.ListPodResourcesResponse()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise FormatError(str(error), structure="ListPodResourcesResponse", field="") from error
        return cls(
            tuple(
                HeldDevices(pod.namespace, pod.name, container.name, devices.resource_name, tuple(devices.device_ids))
                for pod in message.pod_resources
                for container in pod.containers
                for devices in container.devices
            )
        )

    def __bytes__(self) -> bytes:
        message = podresources_pb.ListPodResourcesResponse()
        pods: dict[tuple[str, str], podresources_pb.PodResources] = {}
        containers: dict[tuple[str, str, str], podresources_pb.ContainerResources] = {}
        for held in self.held:
            where = (held.namespace, held.pod)
            if where not in pods:
                pods[where] = message.pod_resources.add(namespace=held.namespace, name=held.pod)
            if (*where, held.container) not in containers:
                containers[*where, held.container] = pods[where].containers.add(name=held.container)
            containers[*where, held.container].devices.add(resource_name=held.resource, device_ids=held.ids)
        return message.SerializeToString(deterministic=True)


LIST = Method("/v1.PodResourcesLister/List", Empty, ListPodResourcesResponse)


# --- The kubelet's second way to find a plugin, as values: it watches a directory of sockets and asks eac ---


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """Who a socket in the kubelet's registry directory is; without `endpoint` it serves the plugin itself."""

    name: str
    endpoint: str = ""
    type: str = "DevicePlugin"
    supported_versions: tuple[str, ...] = (VERSION,)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(registration_pb.PluginInfo(), data)
        return cls(message.name, message.endpoint, message.type, tuple(message.supported_versions))

    def __bytes__(self) -> bytes:
        return registration_pb.PluginInfo(
            type=self.type, name=self.name, endpoint=self.endpoint, supported_versions=self.supported_versions
        ).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """What became of it; `error` is the kubelet's reason."""

    registered: bool
    error: str = ""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(registration_pb.RegistrationStatus(), data)
        return cls(message.plugin_registered, message.error)

    def __bytes__(self) -> bytes:
        return registration_pb.RegistrationStatus(
            plugin_registered=self.registered, error=self.error
        ).SerializeToString(deterministic=True)


GET_INFO = Method("/pluginregistration.Registration/GetInfo", Empty, PluginInfo)
NOTIFY_REGISTRATION_STATUS = Method(
    "/pluginregistration.Registration/NotifyRegistrationStatus", RegistrationStatus, Empty
)
