"""gRPC servers that the kubelet calls: registers them and keeps them registered; serves the devices of one resource.

Serve first, register second. A kubelet that starts deletes every socket in its directory, ours too, and makes its own
again, perhaps with the old inode number; so both are watched, and the time of change counts. A stream that ends while
the kubelet runs is a failure as well: nothing else would bring it back. A stream gets each change and nothing else: the
kubelet writes its checkpoint again with every message.

There are two ways: register at kubelet.sock (device plugins only), or let the kubelet find the socket in a directory
that it watches (device plugins and DRA drivers).

The DRA driver prepares claims; `epc_in_api` publishes its devices. A claim that is ready is a CDI file, which the
container runtime reads and which outlives this process. Each call reads the claim again and writes the same file, so
that it may be repeated; letting go of a claim without a file succeeds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from confcom.devices.resources import CdiFolder, DeviceResource, DraDevices, Inventory
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError, ConfigError, PlatformUnavailable, RemoteProtocolError
from confcom.protocols import kubelet
from confcom.protocols import kubelet as k
from confcom.protocols.epc import DRA_DRIVER, allocated_devices
from confcom.services.device_plugin.grpc import GrpcSocket, Handlers, call
from confcom.services.runtime.process import wait_for

if TYPE_CHECKING:
    from confcom.cluster.nodes import KubeResourceClaims
    from confcom.services.device_plugin.plugin import DevicePluginConfig


KUBELET_SOCKET = "kubelet.sock"
_Fingerprint: TypeAlias = tuple[int, int, int]


_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """One thing that happened to a resource; `name` is the log's event, `warning` its level."""

    name: str
    resource: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


Observer: TypeAlias = Callable[[PluginEvent], None]


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
                await wait_for(wake, again)
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


class Served(Protocol):
    """What the kubelet calls."""

    name: str
    """Its name at the kubelet."""
    endpoint: str
    """A word for its socket's file name."""
    streams: KubeletStreams
    """Those that the kubelet holds open."""

    @property
    def unhealthy_reason(self) -> str:
        """Why what it serves cannot be had now, as a clause; empty when it can."""

    def handlers(self) -> Handlers:
        """The table of calls."""

    def info(self, path: str) -> k.PluginInfo:
        """What it is, for the kubelet that found its socket at `path`."""

    def update(self, node: SgxNode) -> None:
        """Serve what there is of SGX now."""


class Registration:
    """A Part: one server at the kubelet. `ready` is called whenever the kubelet has taken it."""

    def __init__(
        self, server: Served, directory: str, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        self.name = server.name
        self._reason = "the kubelet does not know it yet"
        self._server = server
        self._config = config
        self._observe = observe
        self._ready = ready
        self._retry = config.retry_initial
        self._path = Path(directory) / f"confcom-{server.endpoint}.sock"

    @property
    def unhealthy_reason(self) -> str:
        """Why the kubelet cannot call, or what the server lacks, as a clause; empty when all is well."""
        return self._reason or self._server.unhealthy_reason

    def update(self, node: SgxNode) -> None:
        """Serve what there is of SGX now."""
        self._server.update(node)

    async def run(self) -> None:
        """Bind, have it found, watch, and again; until cancelled.

        `PlatformUnavailable` if the kubelet's folder was removed under a mount: a container that starts again has
        another mount.
        """
        while True:
            try:
                socket = GrpcSocket(self._path, self._handlers())
            except PlatformUnavailable as error:
                self._report("plugin.listen", warning=True, error=error.code, reason=error.message)
                if not error.retryable:
                    raise
                await asyncio.sleep(self._next_retry())
                continue
            try:
                await socket.start()
                await self._while_bound(socket)
            finally:
                await self._server.streams.end()
                await socket.close()
            if socket.path_exists():
                # This process has the turn (`plugin.py`); only versions without turns take the path from it.
                reason = f"another process took {self._path}: taking it back"
                self._report("plugin.listen", warning=True, reason=reason)
                await asyncio.sleep(self._next_retry())

    def _handlers(self) -> Handlers:
        return self._server.handlers()

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """Return once the socket has to be bound again."""
        raise NotImplementedError

    async def _watch(self, socket: GrpcSocket) -> None:
        """Return when the kubelet does not know us any more. Streams that are left are ended then."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        while (reason := self._why_lost(socket)) is None:
            if loop.time() - opened > self._retry:
                self._retry = self._config.retry_initial
            await self._stream_change()
        self._report("kubelet.lost", warning=True, reason=reason)
        await self._server.streams.end()

    def _why_lost(self, socket: GrpcSocket) -> str | None:
        if not socket.owns_path():
            return "our socket is gone"
        return None if self._server.streams.open else "the stream ended"

    async def _stream_change(self) -> None:
        """Until a stream opens or ends, or it is time to look again."""
        await wait_for(self._server.streams.changed, self._config.watch_interval)
        self._server.streams.changed.clear()

    def _next_retry(self) -> float:
        seconds, self._retry = self._retry, min(self._retry * 2, self._config.retry_max)
        return seconds

    def _report(self, name: str, *, warning: bool = False, **fields: object) -> None:
        # Every event here is a change of what the kubelet knows.
        self._reason = "" if fields.get("outcome") == "registered" else str(fields.get("reason", ""))
        self._observe(PluginEvent(name, self.name, fields, warning))


class RegistryRegistration(Registration):
    """In the directory that the kubelet watches: it asks each socket there what it is."""

    def __init__(
        self, server: Served, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        super().__init__(server, config.registry_dir, config, observe, ready)

    def _handlers(self) -> Handlers:
        more: Handlers = {k.GET_INFO: self._get_info, k.NOTIFY_REGISTRATION_STATUS: self._notified}
        return {**super()._handlers(), **more}

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """The kubelet finds us, again after its restart; if it does not come back, the socket has to appear again."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while socket.owns_path() and (deadline is None or loop.time() < deadline):
            if self._server.streams.open:
                self._reason = ""
                self._ready()
                await self._watch(socket)
                deadline = loop.time() + self._config.register_timeout
            await self._stream_change()

    async def _get_info(self, _: k.InfoRequest) -> k.PluginInfo:
        return self._server.info(str(self._path))

    async def _notified(self, status: k.RegistrationStatus) -> k.Empty:
        registered = status.plugin_registered
        outcome = "registered" if registered else "failed"
        reason = "" if registered else status.error or "the kubelet refused it, and says no reason"
        self._report("kubelet.registered", warning=not registered, outcome=outcome, reason=reason)
        if registered:
            self._ready()
        return k.Empty()


class SocketRegistration(Registration):
    """At kubelet.sock."""

    def __init__(
        self, server: ResourceServer, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        super().__init__(server, config.plugin_dir, config, observe, ready)
        self._request = server.registration(self._path.name)
        self._kubelet = Path(config.plugin_dir) / KUBELET_SOCKET
        self._registered_at: _Fingerprint | None = None

    async def _while_bound(self, socket: GrpcSocket) -> None:
        absent = False
        while socket.owns_path():
            kubelet = self._fingerprint()
            if kubelet is None:
                if not absent:
                    self._report("kubelet.absent", reason=f"{self._kubelet} is not there yet")
                absent = True
                await asyncio.sleep(self._config.watch_interval)
                continue
            absent = False
            self._registered_at = kubelet
            if await self._register(socket):
                await self._watch(socket)
            await self._pause(socket)

    async def _register(self, socket: GrpcSocket) -> bool:
        """Says whether the kubelet took the registration and opened its stream."""
        opened = self._server.streams.opened
        try:
            await call(self._kubelet, k.REGISTER, self._request, timeout=self._config.register_timeout)
            await self._await_stream(socket, opened)
        except ConfcomError as error:
            self._report("kubelet.registered", warning=True, outcome="failed", error=error.code, reason=error.message)
            return False
        self._report("kubelet.registered", outcome="registered")
        self._ready()
        return True

    async def _await_stream(self, socket: GrpcSocket, opened: int) -> None:
        """Until one has been opened, even if it has ended again by now: `_watch` sees that."""
        loop = asyncio.get_running_loop()
        limit = self._config.register_timeout
        deadline = loop.time() + limit
        while self._server.streams.opened == opened:
            if self._must_start_over(socket):
                raise PlatformUnavailable("the kubelet restarted before it opened its stream", retryable=True)
            if loop.time() > deadline:
                raise PlatformUnavailable(f"the kubelet opened no stream within {limit:g} s", retryable=True)
            await self._stream_change()

    def _why_lost(self, socket: GrpcSocket) -> str | None:
        if socket.owns_path() and self._registered_at != self._fingerprint():
            return "the kubelet has made its socket again"
        return super()._why_lost(socket)

    async def _pause(self, socket: GrpcSocket) -> None:
        """Until the next attempt; at once when the kubelet restarts: that is another kubelet to try."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._next_retry()
        while (left := deadline - loop.time()) > 0:
            if self._must_start_over(socket):
                self._retry = self._config.retry_initial
                return
            await asyncio.sleep(min(left, self._config.watch_interval))

    def _must_start_over(self, socket: GrpcSocket) -> bool:
        return not socket.owns_path() or self._registered_at != self._fingerprint()

    def _fingerprint(self) -> _Fingerprint | None:
        try:
            status = self._kubelet.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns


# The devices of one resource.

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
        if not ids:
            raise RemoteProtocolError(f"no device of {self.name} is asked for")
        if len(wanted) != len(ids):
            raise RemoteProtocolError(f"a device of {self.name} is asked for twice")
        if unknown := wanted - self._known:
            raise RemoteProtocolError(f"{len(unknown)} of {len(ids)} devices of {self.name} do not exist")
        if reason := self._inventory.reason:
            raise PlatformUnavailable(f"{len(ids)} devices of {self.name} are not healthy: {reason}")

    async def _pre_start(self, request: k.PreStartContainerRequest) -> k.Empty:
        if self._guard is not None:
            pod = await self._guard(request.devices_ids)
            self._observe(PluginEvent("devices.start", self.name, {"units": len(request.devices_ids), "pod": pod}))
        return k.Empty()


CDI_KIND = f"{DRA_DRIVER}/claim"
CDI_PREFIX = f"{DRA_DRIVER}-claim"
CLAIM_ANNOTATION = f"{DRA_DRIVER}/claim"
HEALTH_AGAIN = 30.0
"""Seconds after which the kubelet gets health that has not changed again."""
HEALTH_COUNTS = 120
"""Seconds after which the kubelet shall take health that was not repeated as unknown."""


class ClaimServer:
    """Answers for one node. Its devices are in `pool` under `names`; `update` sets which of them are present."""

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
        self.name = DRA_DRIVER
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
        observe(PluginEvent("claims.known", DRA_DRIVER, {"prepared": len(self._prepared)}))

    @property
    def unhealthy_reason(self) -> str:
        """Why no claim can be made ready, as a clause; empty when the SGX driver is there."""
        return "; ".join(self._node.obstacles)

    def info(self, path: str) -> kubelet.PluginInfo:
        return kubelet.PluginInfo(
            type=kubelet.DRA_PLUGIN_TYPE, name=DRA_DRIVER, endpoint=path, supported_versions=[kubelet.DRA_SERVICE]
        )

    def handlers(self) -> Handlers:
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
        self._observe(PluginEvent(name, DRA_DRIVER, held | fields, warning))
