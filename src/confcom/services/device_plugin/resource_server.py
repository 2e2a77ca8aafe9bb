"""One resource as the kubelet sees it: the answers to its calls, without sockets and registration.

Every open ListAndWatch stream gets each change of the inventory, and nothing else: the kubelet writes its checkpoint
again with every message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from confcom.devices.resources import DeviceResource, Inventory
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfigError, PlatformUnavailable, RemoteProtocolError
from confcom.protocols import kubelet as k
from confcom.services.device_plugin.grpc import Handlers
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent

_Message = TypeVar("_Message")


class KubeletStreams:
    """The streams that the kubelet holds open to a server of ours; all of them get the same messages.

    `open` counts those that are open, `opened` those that ever were.
    """

    def __init__(self) -> None:
        self.open = 0
        self.opened = 0
        self.changed = asyncio.Event()
        """Set whenever a stream opens or ends; the waiter clears it."""
        self._wake = asyncio.Event()
        self._closing = False

    async def follow(self, message: Callable[[], _Message], *, again: float | None = None) -> AsyncIterator[_Message]:
        """One stream's messages: at once, after each `awaken`, and every `again` seconds if given."""
        self.open += 1
        self.opened += 1
        self.changed.set()
        try:
            while not self._closing:
                wake = self._wake
                yield message()
                with suppress(TimeoutError):
                    async with asyncio.timeout(again):
                        await wake.wait()
        finally:
            self.open -= 1
            self.changed.set()

    def awaken(self) -> None:
        """Have every stream send its message again."""
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    async def end(self) -> None:
        """End every stream in order, so that the kubelet closes its connections; the next one may open after that."""
        self._closing = True
        self.awaken()
        for _ in range(100):
            if not self.open:
                break
            await asyncio.sleep(0.01)
        self._closing = False


Guard = Callable[[Sequence[str]], Awaitable[str]]
"""Which pod is about to start with these ids, for the log; a `PolicyError` if it must not."""


class ResourceServer:
    """Answers for one resource, with what there is of it on `node`."""

    def __init__(self, resource: DeviceResource, node: SgxNode, observe: Observer, guard: Guard | None = None) -> None:
        self.name = resource.name
        self.endpoint = resource.endpoint
        self.streams = KubeletStreams()
        self._resource = resource
        self._observe = observe
        self._guard = guard
        self._take(resource.inventory(node))

    def registration(self, file: str) -> k.RegisterRequest:
        """What we register as, with a socket of that name in the kubelet's directory."""
        return k.RegisterRequest(version=k.VERSION, endpoint=file, resource_name=self.name, options=self._options())

    def info(self, path: str) -> k.PluginInfo:
        """What serves at a socket in the directory that the kubelet watches."""
        return k.PluginInfo(type="DevicePlugin", name=self.name, endpoint=path, supported_versions=[k.VERSION])

    @property
    def unhealthy_reason(self) -> str:
        """Why containers cannot get the devices now; empty when they can, or when the plugin is well without them."""
        return self._inventory.reason if self._resource.essential else ""

    def handlers(self) -> Handlers:
        """The table of calls."""
        return {
            k.GET_OPTIONS: self._get_options,
            k.LIST_AND_WATCH: self._list_and_watch,
            k.GET_PREFERRED_ALLOCATION: self._prefer,
            k.ALLOCATE: self._allocate,
            k.PRE_START_CONTAINER: self._pre_start,
        }

    def update(self, node: SgxNode) -> None:
        """Take what there is now, and send it if devices appeared, vanished, or changed their health."""
        before, inventory = self._inventory, self._resource.inventory(node)
        self._take(inventory)
        if inventory.reason != before.reason:
            health = {"healthy": not inventory.reason, "reason": inventory.reason}
            self._observe(PluginEvent("devices.health", self.name, health, warning=bool(inventory.reason)))
        if inventory.devices != before.devices:
            self.streams.awaken()

    def _take(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._known = frozenset(device.ID for device in inventory.devices.devices)

    def _options(self) -> k.DevicePluginOptions:
        return k.DevicePluginOptions(
            pre_start_required=self._guard is not None, get_preferred_allocation_available=self._resource.prefers
        )

    async def _get_options(self, _: k.Empty) -> k.DevicePluginOptions:
        return self._options()

    def _list_and_watch(self, _: k.Empty) -> AsyncIterator[k.ListAndWatchResponse]:
        return self.streams.follow(self._list)

    def _list(self) -> k.ListAndWatchResponse:
        found, count = self._inventory, len(self._known)
        size = found.devices.ByteSize()
        if size > k.MAX_MESSAGE:
            # The kubelet would close the stream silently.
            reason = f"{count} devices make a message of {size} bytes; the kubelet takes {k.MAX_MESSAGE}"
            self._observe(PluginEvent("devices.too_many", self.name, {"reason": reason}, warning=True))
            raise ConfigError(reason, advice="Publish EPC in the node's status.")
        fields = {"devices": count, "healthy": 0 if found.reason else count, "bytes": size}
        self._observe(PluginEvent("devices.sent", self.name, fields))
        return found.devices

    async def _prefer(self, request: k.PreferredAllocationRequest) -> k.PreferredAllocationResponse:
        response = k.PreferredAllocationResponse()
        for entry in request.container_requests:
            ids = self._resource.prefer(entry.available_deviceIDs, entry.must_include_deviceIDs, entry.allocation_size)
            response.container_responses.add(deviceIDs=ids)
        return response

    async def _allocate(self, request: k.AllocateRequest) -> k.AllocateResponse:
        started = time.perf_counter()
        wanted = [list(entry.devices_ids) for entry in request.container_requests]
        for ids in wanted:
            self._check(ids)
        granted = [self._resource.grant(ids, self._inventory) for ids in wanted]
        duration = round((time.perf_counter() - started) * 1000, 3)
        for ids, container in zip(wanted, granted, strict=True):
            fields = {"units": len(ids), "devices": len(container.devices), "duration_ms": duration}
            self._observe(PluginEvent("devices.granted", self.name, fields))
        return k.AllocateResponse(container_responses=granted)

    def _check(self, ids: Sequence[str]) -> None:
        wanted = set(ids)
        if len(wanted) != len(ids):
            raise RemoteProtocolError(f"a device of {self.name} is asked for twice")
        if unknown := wanted - self._known:
            raise RemoteProtocolError(f"{len(unknown)} of {len(ids)} devices of {self.name} do not exist")
        if ids and (reason := self._inventory.reason):
            raise PlatformUnavailable(f"{len(ids)} devices of {self.name} are not healthy: {reason}")

    async def _pre_start(self, request: k.PreStartContainerRequest) -> k.Empty:
        if self._guard is not None:
            pod = await self._guard(request.devices_ids)
            self._observe(PluginEvent("devices.start", self.name, {"units": len(request.devices_ids), "pod": pod}))
        return k.Empty()
