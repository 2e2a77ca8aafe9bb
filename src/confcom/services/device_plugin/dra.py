"""EPC by dynamic resource allocation: prepares claims for the kubelet. `epc_in_api` publishes the devices.

A claim that is ready is a CDI file, which the container runtime reads and which outlives this process. Each call reads
the claim again and writes the same file, so that it may be repeated; letting go of a claim without a file succeeds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from confcom.devices.resources import CdiFolder, DraDevices
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError, RemoteProtocolError
from confcom.protocols import kubelet
from confcom.protocols.dra_objects import DRIVER, allocated_devices
from confcom.services.device_plugin.grpc import Handlers
from confcom.services.device_plugin.kubelet_plugin import KubeletStreams, Observer, PluginEvent

if TYPE_CHECKING:
    from confcom.cluster.nodes import KubeResourceClaims

CDI_KIND = f"{DRIVER}/claim"
CDI_PREFIX = f"{DRIVER}-claim"
CLAIM_ANNOTATION = f"{DRIVER}/claim"
HEALTH_AGAIN = 30.0
"""Seconds after which the kubelet gets health that has not changed again."""
HEALTH_COUNTS = 120
"""Seconds after which the kubelet shall take health that was not repeated as unknown."""


class ClaimServer:
    """Answers for one node, whose devices are in `pool` under `names`; `update` says which of them are there."""

    def __init__(
        self,
        pool: str,
        devices: DraDevices,
        names: tuple[str, ...],
        node: SgxNode,
        claims: KubeResourceClaims,
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
        # By this process or by one before it.
        self._prepared = set(folder.uids())
        observe(PluginEvent("claims.known", DRIVER, {"prepared": len(self._prepared)}))

    @property
    def unhealthy_reason(self) -> str:
        """Why no claim can be made ready, as a clause; empty when the SGX driver is there."""
        return "; ".join(self._node.obstacles)

    def info(self, path: str) -> kubelet.PluginInfo:
        """What serves at our socket."""
        return kubelet.PluginInfo(
            type=kubelet.DRA_PLUGIN_TYPE, name=DRIVER, endpoint=path, supported_versions=[kubelet.DRA_SERVICE]
        )

    def handlers(self) -> Handlers:
        """The table of calls."""
        return {
            kubelet.PREPARE: self._prepare_all,
            kubelet.UNPREPARE: self._unprepare_all,
            kubelet.WATCH_HEALTH: self._watch_health,
        }

    def update(self, node: SgxNode) -> None:
        """Take what there is of SGX now, and send it if health has changed."""
        before, self._node = self._reasons(), node
        if [not reason for reason in before.values()] != [not reason for reason in self._reasons().values()]:
            self.streams.awaken()

    async def _prepare_all(self, request: kubelet.NodePrepareResourcesRequest) -> kubelet.NodePrepareResourcesResponse:
        return kubelet.NodePrepareResourcesResponse(
            claims={claim.uid: await self._prepare(claim) for claim in request.claims}
        )

    async def _prepare(self, claim: kubelet.Claim) -> kubelet.NodePrepareResourceResponse:
        """A claim that cannot be had is an answer: the kubelet shows the reason in the pod's events, and asks again."""
        try:
            async with self._turns:
                devices = await self._make_ready(claim)
        except ConfcomError as error:
            reason = f"{error.code}: {error.message}"
            self._report("claim.prepared", claim, warning=True, outcome="failed", reason=reason)
            return kubelet.NodePrepareResourceResponse(error=reason)
        self._report("claim.prepared", claim, outcome="prepared", devices=len(devices))
        return kubelet.NodePrepareResourceResponse(devices=devices)

    async def _make_ready(self, claim: kubelet.Claim) -> list[kubelet.PreparedDevice]:
        found = await self._claims.get(claim.namespace, claim.name)
        if found.get("metadata", {}).get("uid") != claim.uid:
            # Another claim may have got its name meanwhile, but never its UID.
            raise RemoteProtocolError(f"{claim.namespace}/{claim.name} is another claim by now")
        chosen = [device for device in allocated_devices(found) if device.pool == self._pool]
        if not chosen:
            raise RemoteProtocolError(f"{claim.namespace}/{claim.name} has none of this node's devices")
        brought = self._devices.grant(chosen, self._node, namespace=claim.namespace)
        names = {f"{claim.uid}-{number}": one for number, one in enumerate(brought)}
        spec = kubelet.cdi_spec(CDI_KIND, names, {CLAIM_ANNOTATION: f"{claim.namespace}/{claim.name}"})
        await asyncio.to_thread(self._folder.write, claim.uid, spec)
        self._prepared.add(claim.uid)
        return [
            kubelet.PreparedDevice(
                request_names=[device.request],
                pool_name=device.pool,
                device_name=device.device,
                cdi_device_ids=[f"{CDI_KIND}={name}"],
                share_id=device.share or None,  # the kubelet takes an empty share for one: presence counts
            )
            for device, name in zip(chosen, names, strict=True)
        ]

    async def _unprepare_all(
        self, request: kubelet.NodeUnprepareResourcesRequest
    ) -> kubelet.NodeUnprepareResourcesResponse:
        return kubelet.NodeUnprepareResourcesResponse(
            claims={claim.uid: await self._unprepare(claim) for claim in request.claims}
        )

    async def _unprepare(self, claim: kubelet.Claim) -> kubelet.NodeUnprepareResourceResponse:
        try:
            async with self._turns:
                known = await asyncio.to_thread(self._folder.remove, claim.uid)
            self._prepared.discard(claim.uid)
        except ConfcomError as error:
            reason = f"{error.code}: {error.message}"
            self._report("claim.unprepared", claim, warning=True, outcome="failed", reason=reason)
            return kubelet.NodeUnprepareResourceResponse(error=reason)
        self._report("claim.unprepared", claim, outcome="unprepared" if known else "unknown")
        return kubelet.NodeUnprepareResourceResponse()

    def _watch_health(self, _: kubelet.NodeWatchResourcesRequest) -> AsyncIterator[kubelet.NodeWatchResourcesResponse]:
        return self.streams.follow(self._health, again=HEALTH_AGAIN)

    def _health(self) -> kubelet.NodeWatchResourcesResponse:
        now = int(time.time())
        return kubelet.NodeWatchResourcesResponse(
            devices=[
                kubelet.device_health(self._pool, name, reason, known=now, timeout=HEALTH_COUNTS)
                for name, reason in self._reasons().items()
            ]
        )

    def _reasons(self) -> Mapping[str, str]:
        """Why each device is unhealthy; empty for one that is healthy."""
        return {name: self._devices.why_missing(name, self._node) for name in self._names}

    def _report(self, name: str, claim: kubelet.Claim, *, warning: bool = False, **fields: object) -> None:
        held = {"claim": f"{claim.namespace}/{claim.name}", "uid": claim.uid, "prepared": len(self._prepared)}
        self._observe(PluginEvent(name, DRIVER, held | fields, warning))
