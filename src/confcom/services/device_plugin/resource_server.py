"""One resource as the kubelet sees it: the answers to its calls, without sockets and registration.

Every open ListAndWatch stream is told of each change of the inventory, and of nothing else: the kubelet writes its
checkpoint anew with every message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from confcom.devices.interface import DeviceResource, Inventory
from confcom.errors import ConfigError, PlatformUnavailable, RemoteProtocolError
from confcom.protocols import kubelet as k
from confcom.protocols.kubelet import Empty, Method, PluginInfo
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent

# --- The streams that the kubelet holds open to a server of ours: all are told the same, whenever there is news -------


_Message = TypeVar("_Message")


class KubeletStreams:
    """`open` counts those that are open, `opened` those that ever were."""

    def __init__(self) -> None:
        self.open = 0
        self.opened = 0
        self.changed = asyncio.Event()
        """Set whenever a stream opens or ends; whoever waits for that clears it."""
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
        """There is something new."""
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
"""Who is about to start with these ids; a `PolicyError` if they must not. Returns the pod for the log."""


class ResourceServer:
    """Answers for one resource. `update` gives it what there is now."""

    def __init__(
        self, resource: DeviceResource, inventory: Inventory, observe: Observer, guard: Guard | None = None
    ) -> None:
        self.resource = resource
        self.streams = KubeletStreams()
        self._observe = observe
        self._guard = guard
        self._take(inventory)

    @property
    def name(self) -> str:
        """The resource's."""
        return self.resource.name

    @property
    def endpoint(self) -> str:
        """The resource's."""
        return self.resource.endpoint

    def request(self, file: str) -> k.RegisterRequest:
        """What we register as, with a socket of that name in the kubelet's directory."""
        return k.RegisterRequest(file, self.name, self.options)

    def info(self, path: str) -> PluginInfo:
        """Who serves at a socket in the directory that the kubelet watches."""
        return PluginInfo(name=self.name, endpoint=path)

    @property
    def options(self) -> k.DevicePluginOptions:
        """What the kubelet shall call."""
        return k.DevicePluginOptions(
            pre_start_required=self._guard is not None, get_preferred_allocation_available=self.resource.prefers
        )

    @property
    def trouble(self) -> str:
        """Why containers cannot get the devices now; empty when they can, or when the plugin is well without them."""
        return self._inventory.reason if self.resource.essential else ""

    def handlers(self) -> dict[Method, Callable[[Any], Any]]:
        """The table of calls."""
        return {
            k.GET_OPTIONS: self._get_options,
            k.LIST_AND_WATCH: self._list_and_watch,
            k.GET_PREFERRED_ALLOCATION: self._prefer,
            k.ALLOCATE: self._allocate,
            k.PRE_START_CONTAINER: self._pre_start,
        }

    def update(self, inventory: Inventory) -> None:
        """Take what there is now, and tell every stream if devices came, went, or changed their health."""
        same = inventory.devices == self._inventory.devices
        before = self._inventory.reason
        self._take(inventory)
        if inventory.reason != before:
            health = {"healthy": not inventory.reason, "reason": inventory.reason}
            self._observe(PluginEvent("devices.health", self.resource.name, health, trouble=bool(inventory.reason)))
        if not same:
            self.streams.awaken()

    def _take(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._healthy = frozenset(device.id for device in inventory.devices if device.healthy)
        self._known = frozenset(device.id for device in inventory.devices)

    async def _get_options(self, request: Empty) -> k.DevicePluginOptions:
        del request
        return self.options

    def _list_and_watch(self, request: Empty) -> AsyncIterator[bytes]:
        del request
        return self.streams.follow(self._message)

    def _message(self) -> bytes:
        devices = self._inventory.devices
        message = bytes(k.ListAndWatchResponse(devices))
        if len(message) > k.MAX_MESSAGE:
            # The kubelet would close the stream without a word to us.
            reason = f"{len(devices)} devices make a message of {len(message)} bytes; the kubelet takes {k.MAX_MESSAGE}"
            self._observe(PluginEvent("devices.too_many", self.resource.name, {"reason": reason}, trouble=True))
            raise ConfigError(reason, advice="Publish EPC in the node's status.")
        fields = {"devices": len(devices), "healthy": len(self._healthy), "bytes": len(message)}
        self._observe(PluginEvent("devices.sent", self.resource.name, fields))
        return message

    async def _prefer(self, request: k.PreferredAllocationRequest) -> k.PreferredAllocationResponse:
        return k.PreferredAllocationResponse(
            tuple(self.resource.prefer(entry.available, entry.must_include, entry.size) for entry in request.containers)
        )

    async def _allocate(self, request: k.AllocateRequest) -> k.AllocateResponse:
        started = time.perf_counter()
        for ids in request.containers:
            self._check(ids)
        response = k.AllocateResponse(tuple(self.resource.grant(ids, self._inventory) for ids in request.containers))
        duration = round((time.perf_counter() - started) * 1000, 3)
        for ids, container in zip(request.containers, response.containers, strict=True):
            fields = {"units": len(ids), "devices": len(container.devices), "duration_ms": duration}
            self._observe(PluginEvent("devices.granted", self.resource.name, fields))
        return response

    def _check(self, ids: Sequence[str]) -> None:
        wanted = set(ids)
        if len(wanted) != len(ids):
            raise RemoteProtocolError(f"a device of {self.resource.name} is asked for twice")
        if unknown := wanted - self._known:
            raise RemoteProtocolError(f"{len(unknown)} of {len(ids)} devices of {self.resource.name} do not exist")
        if sick := wanted - self._healthy:
            reason = self._inventory.reason
            raise PlatformUnavailable(f"{len(sick)} devices of {self.resource.name} are not healthy: {reason}")

    async def _pre_start(self, request: k.PreStartContainerRequest) -> Empty:
        if self._guard is not None:
            pod = await self._guard(request.ids)
            self._observe(PluginEvent("devices.start", self.resource.name, {"units": len(request.ids), "pod": pod}))
        return Empty()
