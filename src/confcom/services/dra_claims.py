"""The kubelet's calls to a DRA driver: make claims ready for their containers, let them go, and tell of health.

A claim that is ready is a CDI file, which the container runtime reads and which outlives this process. Each call reads
the claim anew and writes the same file again, so that it may be repeated; letting go of what is not there is well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from confcom.devices.cdi_folder import CdiFolder
from confcom.devices.dra_devices import DraDevices
from confcom.devices.interface import ResourceClaims
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError, RemoteProtocolError
from confcom.protocols import kubelet_dra as dra
from confcom.protocols.cdi import cdi_spec
from confcom.protocols.dra_objects import DRIVER, AllocatedDevice, allocated_devices
from confcom.protocols.kubelet_calls import Empty, Method
from confcom.protocols.kubelet_dra_health import WATCH_HEALTH, DeviceHealth, HealthList
from confcom.protocols.kubelet_plugin_registration import PluginInfo
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.kubelet_streams import KubeletStreams

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
