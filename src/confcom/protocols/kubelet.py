"""The kubelet's device plugin API v1beta1 as values, and its services as tables; no sockets.

The kubelet is a gRPC client of ours whose receive limit is the library's default: `MAX_MESSAGE`, exact to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb
from confcom.protocols.kubelet_calls import Empty, Method, read_message

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
