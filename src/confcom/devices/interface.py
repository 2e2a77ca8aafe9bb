"""What a device resource is to the service that offers it to the kubelet, and where EPC can be published instead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confcom.cluster.nodes import NodeStatus
from confcom.devices.sgx_node import SgxNode
from confcom.protocols.kubelet import ContainerAllocation, Device


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a resource at one moment. `reason` says why they are unhealthy, or is empty."""

    devices: tuple[Device, ...]
    node: SgxNode
    reason: str = ""


class DeviceResource(Protocol):
    """One extended resource: what there is of it, and what a container gets with it."""

    @property
    def name(self) -> str:
        """The extended resource's name, `domain/word`."""

    @property
    def endpoint(self) -> str:
        """A word for its socket's file name."""

    @property
    def prefers(self) -> bool:
        """Whether `prefer` has a preference at all."""

    @property
    def essential(self) -> bool:
        """Whether the plugin is not ready while it is unhealthy."""

    @property
    def guarded(self) -> bool:
        """Whether the pods that may have it are checked before each start of a container."""

    def inventory(self, node: SgxNode) -> Inventory:
        """The devices that this node offers now."""

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Which ids a container had best get."""

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """What the container that gets these ids sees; the caller has checked that they are in the inventory."""


class NodeStatusPublisher(Protocol):
    """The one Node object that we may write; failures are `ConfcomError`s, worth another attempt."""

    def watch(self) -> AsyncGenerator[NodeStatus, None]:
        """The present state, then each further one; ends or raises when the watch is lost."""

    async def patch(self, patch: Mapping[str, object]) -> None:
        """Merge into the node's status."""


class ResourceSlices(Protocol):
    """The ResourceSlices of our driver on this node, as JSON; failures are `ConfcomError`s, worth another attempt."""

    def watch(self) -> AsyncGenerator[Mapping[str, Mapping[str, Any]], None]:
        """All of them by name, then anew after each change; ends or raises when the watch is lost."""

    async def owner(self) -> str:
        """The UID of the Node object."""

    async def write(self, wanted: Mapping[str, Any], present: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Create one, or replace `present`; returns what the API made of it."""

    async def delete(self, name: str) -> None:
        """Take one away."""


class ResourceClaims(Protocol):
    """Claims of the whole cluster, as JSON."""

    async def get(self, namespace: str, name: str) -> Mapping[str, Any]:
        """One of them; failures are `ConfcomError`s."""
