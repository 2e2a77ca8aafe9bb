"""The kubelet's podresources API v1, as far as we ask it: which pod holds which devices; no sockets.

It lists what device plugins handed out, of pods whose containers run or are about to; ordinary init containers are not
listed. The answer may be longer than gRPC's usual limit: the client has to allow for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from confcom.errors import FormatError
from confcom.protocols._pb import kubelet_podresources_pb2 as pb
from confcom.protocols.kubelet_calls import Empty, Method


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
        message = pb.ListPodResourcesResponse()
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
        message = pb.ListPodResourcesResponse()
        pods: dict[tuple[str, str], pb.PodResources] = {}
        containers: dict[tuple[str, str, str], pb.ContainerResources] = {}
        for held in self.held:
            where = (held.namespace, held.pod)
            if where not in pods:
                pods[where] = message.pod_resources.add(namespace=held.namespace, name=held.pod)
            if (*where, held.container) not in containers:
                containers[*where, held.container] = pods[where].containers.add(name=held.container)
            containers[*where, held.container].devices.add(resource_name=held.resource, device_ids=held.ids)
        return message.SerializeToString(deterministic=True)


LIST = Method("/v1.PodResourcesLister/List", Empty, ListPodResourcesResponse)
