"""EPC by dynamic resource allocation, as parts of the device plugin: devices in the API, claims at the kubelet."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from confcom.devices.dra import CdiFolder, DraDevices
from confcom.devices.epc import numa_node_of
from confcom.devices.interface import ResourceClaims, ResourceSlices
from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError, PlatformUnavailable, RemoteProtocolError
from confcom.protocols import kubelet_dra as dra
from confcom.protocols.dra_objects import (
    DRIVER,
    AllocatedDevice,
    SharedDevice,
    allocated_devices,
    lost_sharing,
    resource_slice,
    slice_devices,
    slice_generation,
    slice_name,
)
from confcom.protocols.kubelet import LIST, Empty, Method, PluginInfo
from confcom.protocols.kubelet_dra import WATCH_HEALTH, DeviceHealth, HealthList, cdi_spec
from confcom.services.device_plugin.grpc import call
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.device_plugin.registration import RegistryRegistration
from confcom.services.device_plugin.resource_server import KubeletStreams
from confcom.services.runtime.reconciler import Reconciler

# --- The kubelet's calls to a DRA driver: make claims ready for their containers, let them go, and tell o ---
#
# A claim that is ready is a CDI file, which the container runtime reads and which outlives this process. Each call
# reads the claim anew and writes the same file again, so that it may be repeated; letting go of what is not there is
# well.


CDI_KIND = f"{DRIVER}/claim"
CDI_PREFIX = f"{DRIVER}-claim"
CLAIM_ANNOTATION = f"{DRIVER}/claim"
HEALTH_AGAIN = 30.0
"""Seconds after which the kubelet is told again what has not changed."""
HEALTH_COUNTS = 120
"""Seconds after which it shall take our silence for ignorance."""


class ClaimServer:
    """Answers for one node, whose devices are in `pool` under `names`; `update` says what of them is there."""

    def __init__(
        self,
        pool: str,
        devices: DraDevices,
        names: tuple[str, ...],
        node: SgxNode,
        claims: ResourceClaims,
        folder: CdiFolder,
        observe: Observer,
    ) -> None:
        self.name = DRIVER
        self.endpoint = "dra"
        self.streams = KubeletStreams()
        self._pool = pool
        self._devices = devices
        self._names = names
        self._node = node
        self._claims = claims
        self._folder = folder
        self._observe = observe
        self._turns = asyncio.Lock()

    def info(self, path: str) -> PluginInfo:
        """Who serves at our socket."""
        return PluginInfo(DRIVER, path, dra.PLUGIN_TYPE, (dra.SERVICE,))

    def handlers(self) -> dict[Method, Callable[[Any], Any]]:
        """The table of calls."""
        return {dra.PREPARE: self._prepare_all, dra.UNPREPARE: self._unprepare_all, WATCH_HEALTH: self._watch_health}

    def tell_known(self) -> None:
        """Say how many claims are prepared, by this process or by one before it."""
        self._observe(PluginEvent("claims.known", DRIVER, {"prepared": len(self._folder.uids())}))

    def update(self, node: SgxNode) -> None:
        """Take what there is of SGX now, and tell of it if health has changed."""
        before, self._node = self._health(), node
        if [device.healthy for device in self._health()] != [device.healthy for device in before]:
            self.streams.awaken()

    async def _prepare_all(self, request: dra.ClaimsRequest) -> dra.PrepareResponse:
        return dra.PrepareResponse({claim.uid: await self._prepare(claim) for claim in request.claims})

    async def _prepare(self, claim: dra.ClaimName) -> dra.PreparedClaim:
        """A claim that cannot be had is an answer: the kubelet shows the reason in the pod's events, and asks again."""
        try:
            async with self._turns:
                devices = await self._make_ready(claim)
        except ConfcomError as error:
            self._tell("claim.prepared", claim, trouble=True, outcome="failed", reason=f"{error.code}: {error.message}")
            return dra.PreparedClaim(error=f"{error.code}: {error.message}")
        self._tell("claim.prepared", claim, outcome="prepared", devices=len(devices))
        return dra.PreparedClaim(devices)

    async def _make_ready(self, claim: dra.ClaimName) -> tuple[dra.PreparedDevice, ...]:
        found = await self._claims.get(claim.namespace, claim.name)
        if found.get("metadata", {}).get("uid") != claim.uid:
            raise RemoteProtocolError(f"{claim.namespace}/{claim.name} is another claim by now")
        chosen = [device for device in allocated_devices(found) if device.pool == self._pool]
        if not chosen:
            raise RemoteProtocolError(f"{claim.namespace}/{claim.name} has none of this node's devices")
        brought = self._devices.grant(chosen, self._node, namespace=claim.namespace)
        names = {f"{claim.uid}-{number}": one for number, one in enumerate(brought)}
        spec = cdi_spec(CDI_KIND, names, {CLAIM_ANNOTATION: f"{claim.namespace}/{claim.name}"})
        await asyncio.to_thread(self._folder.write, claim.uid, spec)
        return tuple(_prepared(device, name) for device, name in zip(chosen, names, strict=True))

    async def _unprepare_all(self, request: dra.ClaimsRequest) -> dra.UnprepareResponse:
        return dra.UnprepareResponse({claim.uid: await self._unprepare(claim) for claim in request.claims})

    async def _unprepare(self, claim: dra.ClaimName) -> str:
        try:
            async with self._turns:
                known = await asyncio.to_thread(self._folder.remove, claim.uid)
        except ConfcomError as error:
            reason = f"{error.code}: {error.message}"
            self._tell("claim.unprepared", claim, trouble=True, outcome="failed", reason=reason)
            return reason
        self._tell("claim.unprepared", claim, outcome="unprepared" if known else "unknown")
        return ""

    def _watch_health(self, request: Empty) -> AsyncIterator[HealthList]:
        del request
        return self.streams.follow(lambda: HealthList(self._health()), again=HEALTH_AGAIN)

    def _health(self) -> tuple[DeviceHealth, ...]:
        reasons = {name: self._devices.why_missing(name, self._node) for name in self._names}
        now = int(time.time())
        return tuple(
            DeviceHealth(self._pool, name, not reason, now, HEALTH_COUNTS, reason) for name, reason in reasons.items()
        )

    def _tell(self, name: str, claim: dra.ClaimName, *, trouble: bool = False, **fields: object) -> None:
        held = {"claim": f"{claim.namespace}/{claim.name}", "uid": claim.uid, "prepared": len(self._folder.uids())}
        self._observe(PluginEvent(name, DRIVER, held | fields, trouble))


def _prepared(device: AllocatedDevice, name: str) -> dra.PreparedDevice:
    return dra.PreparedDevice(
        pool=device.pool,
        device=device.device,
        requests=(device.request,),
        cdi_devices=(f"{CDI_KIND}={name}",),
        share=device.share,
    )


# --- Keeps the node's ResourceSlice in the API: the kubelet deletes it when it starts, and anybody may by ---
#
# A slice whose devices cannot be shared would give a whole NUMA node to the first claim. An API server that drops
# what allows sharing (before 1.36, or with DRAConsumableCapacity off) therefore gets no slice at all, and the log
# says why.


_Found = Mapping[str, Mapping[str, Any]]


class SliceReconciler:
    """One slice with the wanted devices, and no other slice of this driver on this node."""

    def __init__(
        self,
        slices: ResourceSlices,
        node: str,
        devices: tuple[SharedDevice, ...],
        observe: Observer,
        *,
        settle: float,
    ) -> None:
        self._slices = slices
        self._node = node
        self._devices = devices
        self._observe = observe
        self._generation = 0
        self._reconciler: Reconciler[_Found] = Reconciler(slices.watch, self._repair, self._failed, settle=settle)

    @property
    def trouble(self) -> str:
        """Why claims may not find the devices, as a clause; empty when the slice is there."""
        return self._reconciler.trouble

    def update(self, devices: tuple[SharedDevice, ...]) -> None:
        """Want other devices from now on."""
        if devices != self._devices:
            self._devices = devices
            self._reconciler.wake()

    async def run(self) -> None:
        """For ever; failures are told and tried again."""
        await self._reconciler.run()

    async def _repair(self, found: _Found) -> bool:
        name = slice_name(self._node)
        strangers = [other for other in found if other != name]
        for other in strangers:
            await self._slices.delete(other)
        present = found.get(name)
        self._generation = max([self._generation, *map(slice_generation, found.values())])
        wanted = resource_slice(self._node, self._devices, generation=self._generation)
        if present is not None and slice_devices(present) == slice_devices(wanted):
            return bool(strangers)
        await self._write(present)
        return True

    async def _write(self, present: Mapping[str, Any] | None) -> None:
        self._generation += 1
        wanted = resource_slice(
            self._node, self._devices, generation=self._generation, owner=await self._slices.owner()
        )
        written = await self._slices.write(wanted, present)
        if lost_sharing(written):
            await self._slices.delete(slice_name(self._node))
            raise PlatformUnavailable(
                "the API server does not know devices that claims share, so a claim would get a whole NUMA node",
                retryable=True,
                advice="Kubernetes 1.36 or later has the feature (DRAConsumableCapacity); or choose another publisher.",
            )
        fields = {"outcome": "published", "devices": len(self._devices), "generation": self._generation}
        self._observe(PluginEvent("epc.published", DRIVER, fields))

    def _failed(self, reason: str) -> None:
        fields = {"outcome": "failed", "reason": reason}
        self._observe(PluginEvent("epc.published", DRIVER, fields, trouble=True))


class ClaimsAtKubelet:
    """A Part: the driver as the kubelet calls it. `ready` is called whenever the kubelet has taken it."""

    def __init__(
        self,
        devices: DraDevices,
        names: tuple[str, ...],
        node: SgxNode,
        claims: ResourceClaims,
        config: DevicePluginConfig,
        observe: Observer,
        *,
        ready: Callable[[], None],
    ) -> None:
        self.name = DRIVER
        self._node = node
        folder = CdiFolder(Path(config.cdi_dir), CDI_PREFIX)
        self._server = ClaimServer(config.node_name, devices, names, node, claims, folder, observe)
        self._registration = RegistryRegistration(self._server, self._server.info, config, observe, ready)

    @property
    def trouble(self) -> str:
        """That the kubelet does not know the driver, or that the SGX driver is not there."""
        return self._registration.trouble or "; ".join(self._node.obstacles)

    async def run(self) -> None:
        """Serve the kubelet."""
        self._server.tell_known()
        await self._registration.run()

    def update(self, node: SgxNode) -> None:
        """Tell the kubelet of the devices' health."""
        self._node = node
        self._server.update(node)


class DevicesInApi:
    """A Part: the node's devices where the scheduler finds them, less what pods of another publisher still hold.

    The kubelet says which devices of 1 MiB they hold. It does not say how much EPC in the node's status they have: as
    long as there are such pods, known by their enclave device, no EPC is offered. Nor is any before it answers.
    """

    def __init__(
        self,
        devices: DraDevices,
        units: EpcUnits,
        node: SgxNode,
        slices: ResourceSlices,
        config: DevicePluginConfig,
        observe: Observer,
    ) -> None:
        self.name = "resource slice"
        self._devices = devices
        self._units = units
        self._node = node
        self._config = config
        self._observe = observe
        self._held: Mapping[int | None, int] = {}
        self._kept = "the kubelet has not said yet who holds EPC"
        settle = config.publish_interval
        self._slice = SliceReconciler(slices, config.node_name, self._offered(), observe, settle=settle)

    @property
    def trouble(self) -> str:
        """That the API does not show them, or that none can be offered yet."""
        return self._slice.trouble or self._kept

    async def run(self) -> None:
        """Watch, and repair."""
        await asyncio.gather(self._slice.run(), self._watch_kubelet())

    def update(self, node: SgxNode) -> None:
        """Offer what there is now."""
        self._node = node
        self._slice.update(self._offered())

    def _offered(self) -> tuple[SharedDevice, ...]:
        pool = self._units.pool(self._node)
        held = {one.numa_node: one.units for one in pool.sections} if self._kept else self._held
        return self._devices.offered(pool.without(held), self._node)

    async def _watch_kubelet(self) -> None:
        """Until nothing is held any more: new pods cannot get EPC but by claims."""
        while self._held or self._kept:
            before = self._held, self._kept
            await self._look()
            if (self._held, self._kept) != before:
                fields = {"reason": self._kept, "units": sum(self._held.values())}
                self._observe(PluginEvent("epc.held_back", DRIVER, fields, trouble=bool(self._kept)))
                self._slice.update(self._offered())
            await asyncio.sleep(self._config.health_interval)

    async def _look(self) -> None:
        config = self._config
        try:
            found = await call(Path(config.pod_resources_socket), LIST, Empty(), timeout=config.register_timeout)
        except ConfcomError as error:
            self._kept = f"the kubelet does not say who holds EPC: {error.message}"
            return
        holders: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
        for one in found.held:
            holders[one.resource].add((one.namespace, one.pod, one.container))
        others = len(holders[config.enclave_resource] - holders[config.resource])
        units = [unit for one in found.held if one.resource == config.resource for unit in one.ids]
        self._held = Counter(map(numa_node_of, units))
        self._kept = f"{others} containers hold EPC of the node's status, until they end" if others else ""
