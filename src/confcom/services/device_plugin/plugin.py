"""The device plugin: makes the node's EPC a resource of Kubernetes and gives containers the SGX driver's devices.

It looks at the node, chooses how EPC is published, and runs one part per resource until it is stopped. It looks at the
node again every few seconds: devices that vanish make their resource unhealthy, and healthy when they come back.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.devices.host import Host
from confcom.devices.resources import (
    ANY_NAMESPACE,
    PATIENCE,
    CdiFolder,
    DeviceResource,
    DeviceSlots,
    DraDevices,
    EpcUnits,
    HelperEpc,
    HelperSlots,
    check_holder,
)
from confcom.devices.sgx_node import (
    DEFAULT_UNIT_LIMIT,
    MAX_UNIT_LIMIT,
    EpcPool,
    PublisherChoice,
    PublisherName,
    SgxNode,
    choose_publisher,
    find_cpu_flags,
    find_sgx,
)
from confcom.errors import ConfcomError, ConfigError, PlatformUnavailable, check_want
from confcom.protocols.epc import CANONICAL, DRA_DRIVER, ENCLAVE, HELPER, HELPER_EPC, PROVISION
from confcom.services.device_plugin.epc_in_api import DevicesInApi, EpcInNodeStatus, InApi
from confcom.services.device_plugin.grpc import held_devices
from confcom.services.device_plugin.kubelet_plugin import (
    CDI_PREFIX,
    ClaimServer,
    Observer,
    PluginEvent,
    Registration,
    RegistryRegistration,
    ResourceServer,
    SocketRegistration,
)
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.process import Seconds, background, run_until, wait_for
from confcom.services.runtime.status_page import Handler, Metrics, StatusPage, alive, component_registry, metrics_of

_RESOURCE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_BYTES = "sgx.intel.com/epc"


class DevicePluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the device plugin; the defaults are those for production."""

    platform: Literal["auto", "intel", "simulated"] = "auto"
    """Whose EPC it is."""
    host_root: str = "/"
    """Where this process sees the host's root directory."""
    simulated_machine: str | None = None
    """File of the simulated machine on which this node's enclaves run."""
    simulated_epc: str = "168Mi"
    """EPC of the simulated node: one size per NUMA node, with commas between."""
    simulated_node: str = "/var/lib/confcom/simulated-node"
    """Folder of the simulated node, under the same path here and on the host."""
    wait_for_sgx: bool = False
    """On a node without SGX, wait for it instead of ending with an error."""

    resource: str = CANONICAL
    """Name of the EPC resource, counted in MiB."""
    reserve_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    """MiB held back for enclaves that ask for none, beside what quote helpers have."""
    overcommit: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    """What may be requested as a multiple of what is there beside the reserve; above 1 enclaves may be paged."""
    publisher: PublisherName = "auto"
    """One device per MiB, or an amount in the node's status: `auto` goes by `unit_limit`. `dra`: devices that claims
    share (dynamic resource allocation, Kubernetes 1.36), and no extended resource at all."""
    unit_limit: Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIT_LIMIT)] = DEFAULT_UNIT_LIMIT
    """Most devices that `auto` makes; each costs the kubelet time whenever it restarts."""
    enclave_resource: str = ENCLAVE
    """Name of the enclave device's own resource, beside EPC in the node's status."""
    enclave_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 110
    """Containers with enclaves at a time, beside EPC in the node's status; 110 is the kubelet's limit of pods."""
    provision_resource: str = PROVISION
    """Name of the provisioning device's resource."""
    provision_limit: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    """Containers that may hold the provisioning device at a time; 0: no container gets it."""
    provision_namespaces: str = ""
    """Namespaces whose pods may hold it, with commas between; `*` leaves the choice to admission control."""

    helper_folder: str = ""
    """Folder of the quote helper's socket, under the same path here and on the host, for containers that request
    `helper_resource`. Empty: there is no such resource."""
    helper_resource: str = HELPER
    """Name of the resource that brings a container to the quote helper."""
    helper_epc_mib: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """MiB of EPC for each of the node's two quote helpers (the present one and a successor), which applications cannot
    request: the resource `sgx.confcom.dev/quote-helper-epc`, with both SGX devices. 0: there is no such resource."""
    helper_namespace: str = "confcom-system"
    """Namespace of the quote helper: only its pods may have that resource."""
    helper_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    """Containers that may have it at a time."""
    helper_patience: Seconds = PATIENCE
    """Seconds for which the helper may be away before the resource is unhealthy."""

    node_name: str = ""
    """This node's name in the Kubernetes API, for EPC in the node's status and for `dra`."""
    kubeconfig: str | None = None
    """Credentials for that; without it those of the pod's service account."""
    publish_interval: Seconds = 1.0
    """Seconds between two changes of the node's status at least."""

    plugin_dir: str = "/var/lib/kubelet/device-plugins"
    """The kubelet's directory of device plugins, with kubelet.sock."""
    registration: Literal["socket", "registry"] = "socket"
    """Register at kubelet.sock, or let the kubelet find our socket in `registry_dir`."""
    registry_dir: str = "/var/lib/kubelet/plugins_registry"
    """The directory that the kubelet watches for plugins."""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Where the kubelet says which pod holds which device."""
    cdi_dir: str = "/var/run/cdi"
    """The container runtime's CDI directory, for `dra`: under the same path here and on the host, or mounted here."""

    http: str = ""
    """Where /healthz, /readyz and /metrics are: HOST:PORT, [ADDRESS]:PORT or unix:PATH. Empty: nowhere."""

    watch_interval: Seconds = 0.5
    """Seconds between two looks at the sockets."""
    health_interval: Seconds = 5.0
    """Seconds between two looks at the driver's devices."""
    register_timeout: Seconds = 10.0
    """Seconds for the kubelet to take a registration, and to open its stream then."""
    retry_initial: Seconds = 0.2
    """Seconds until another attempt after a failure; doubled each time."""
    retry_max: Seconds = 30.0
    """Most seconds between two attempts."""

    def check(self) -> None:
        """Check what depends on several fields; `ConfigError` says what is wrong."""
        names = (self.resource, self.enclave_resource, self.provision_resource, self.helper_resource, HELPER_EPC)
        for name in names:
            _check_resource(name)
        if len(set(names)) != len(names):
            raise ConfigError("two resources have the same name")
        folder = self.helper_folder
        if folder and (not folder.startswith("/") or {".", ".."} & set(folder.split("/"))):
            raise ConfigError(
                f"{folder!r} is no folder as the container runtime takes it",
                advice="Write an absolute path without dots, such as /var/run/aesmd.",
            )
        if self.resource == _BYTES:
            raise ConfigError(
                f"{_BYTES} counts bytes, and the EPC resource here counts MiB",
                advice="Leave the resource as it is: requests in other dialects are translated at admission.",
            )
        if self.publisher == "dra" and not self.node_name:
            raise ConfigError(
                "publisher dra needs the node's name in the Kubernetes API", advice="Name the node with --node-name."
            )
        if self.provision_limit and not self.namespaces:
            raise ConfigError(
                "names no namespace, but pods may hold the provisioning device (provision_limit)",
                setting="provision_namespaces",
                advice="Name the namespaces whose pods may hold the provisioning device.",
            )

    @property
    def namespaces(self) -> frozenset[str]:
        return frozenset(word for part in self.provision_namespaces.split(",") if (word := part.strip()))


def _check_resource(name: str) -> None:
    if _RESOURCE.fullmatch(name) is None or f".{name.split('/')[0]}".endswith(".kubernetes.io"):
        raise ConfigError(
            f"{name!r} is no name that the kubelet takes for an extended resource",
            advice="Write DOMAIN/NAME; the domain kubernetes.io is Kubernetes' own.",
        )


# Events, in the log and as metrics.


def log_event(event: PluginEvent) -> None:
    """Write the event to the log."""
    logger = structlog.get_logger()
    (logger.warning if event.warning else logger.info)(event.name, resource=event.resource, **event.fields)


PREFIX = "confcom_device_plugin"
_CLAIM_OUTCOMES = {"prepare": ("prepared", "failed"), "unprepare": ("unprepared", "unknown", "failed")}


class DevicePluginMetrics(Metrics):
    """Everything that the plugin counts. `docs/reference/device-plugin.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        gauge, counter = self.gauge, self.counter
        self._true = gauge("epc_mib", "MiB of EPC that the node has.", "numa_node")
        self._requestable = gauge("epc_requestable_mib", "MiB of EPC that may be requested: less the reserve, times "
                                  "the overcommit ratio.")  # fmt: skip
        self._reserve = gauge("epc_reserve_mib", "MiB of EPC held back.")
        self._overcommit = gauge("epc_overcommit_ratio", "What may be requested by what is there beside the reserve.")
        self._publisher = gauge("publisher", "1 for the way in which EPC is published.", "publisher")
        self._healthy = gauge("healthy", "1 while the resource's devices are there, else 0.", "resource")
        self._devices = gauge("devices", "Devices last told to the kubelet.", "resource")
        self._bytes = gauge("list_bytes", "Bytes of the last list told to the kubelet; it takes 4194304.", "resource")
        self._registrations = counter("registrations", "Registrations, by outcome.", "resource", "outcome")
        self._losses = counter("kubelet_losses", "Times that the kubelet or its stream was lost.", "resource")
        self._grants = counter("grants", "Containers that were given devices.", "resource")
        self._granted = counter("granted_units", "Devices given, summed up over containers.", "resource")
        changes = "Changes of the node's status and of its slice, by outcome."
        self._publications = counter("publications", changes, "outcome")
        self._claims = gauge("claims", "Claims that are prepared.")
        asked = "Claims that the kubelet asked to be prepared or let go."
        self._calls = counter("claim_calls", asked, "call", "outcome")
        for outcome in ("published", "failed"):
            self._publications.labels(outcome)
        for call, outcomes in _CLAIM_OUTCOMES.items():
            for outcome in outcomes:
                self._calls.labels(call, outcome)
        self._by_event: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
            "epc.plan": self._plan,
            "epc.published": lambda _, fields: self._publications.labels(fields["outcome"]).inc(),
            "devices.sent": self._sent,
            "devices.health": lambda resource, fields: self._healthy.labels(resource).set(bool(fields["healthy"])),
            "devices.granted": self._grant,
            "kubelet.registered": self._registered,
            "claims.known": lambda _, fields: self._claims.set(fields["prepared"]),
            "claim.prepared": lambda _, fields: self._claim("prepare", fields),
            "claim.unprepared": lambda _, fields: self._claim("unprepare", fields),
            "kubelet.lost": lambda resource, _: self._losses.labels(resource).inc(),
        }

    def observe(self, event: PluginEvent) -> None:
        """Count an event, if a metric counts events of its name."""
        if count := self._by_event.get(event.name):
            count(event.resource, event.fields)

    def _plan(self, resource: str, fields: Mapping[str, Any]) -> None:
        del resource
        for node, mib in fields["numa_nodes"].items():
            self._true.labels(node).set(mib)
        self._requestable.set(fields["units"])
        self._reserve.set(fields["reserve_mib"])
        self._overcommit.set(fields["overcommit"])
        self._publisher.labels(fields["publisher"]).set(1)

    def _sent(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._devices.labels(resource).set(fields["devices"])
        self._bytes.labels(resource).set(fields["bytes"])
        self._healthy.labels(resource).set(fields["healthy"] == fields["devices"])

    def _registered(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._registrations.labels(resource, fields["outcome"]).inc()
        # Beforehand, so that the first is an increase.
        self._losses.labels(resource)
        for outcome in ("registered", "failed"):
            self._registrations.labels(resource, outcome)

    def _claim(self, call: str, fields: Mapping[str, Any]) -> None:
        self._claims.set(fields["prepared"])
        self._calls.labels(call, fields["outcome"]).inc()

    def _grant(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._grants.labels(resource).inc()
        self._granted.labels(resource).inc(fields["units"])


SETTLE = 2.0
"""Seconds between a predecessor's end and our registration. A kubelet that has not yet noted the end marks the devices
of the plugin that has registered by then as unhealthy, and leaves them so."""


Part: TypeAlias = Registration | InApi[Any, Any]
"""One thing that the plugin publishes."""


class PluginPages:
    """/healthz, /readyz and /metrics. `absent` says why there are no parts yet; `parts` are what readiness is about.

    `waits`: the plugin could serve, and will as soon as its predecessor has ended. That is ready too.
    """

    def __init__(self, observe: Observer) -> None:
        self.absent = "the plugin has not looked at the node yet"
        self.parts: Sequence[Part] = ()
        self.waits = False
        self._registry = component_registry("device-plugin")
        self._metrics = DevicePluginMetrics(self._registry)
        self._observe = observe

    def observe(self, event: PluginEvent) -> None:
        """Count an event, and pass it on."""
        self._metrics.observe(event)
        self._observe(event)

    def table(self) -> dict[str, Handler]:
        return {"/healthz": alive, "/readyz": self._readyz, "/metrics": metrics_of(self._registry)}

    async def _readyz(self) -> Page:
        wrong = {} if self.parts or self.waits else {"node": self.absent}
        if not self.waits:
            wrong |= {part.name: part.unhealthy_reason for part in self.parts if part.unhealthy_reason}
        reason = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        body = {
            "ready": not wrong,
            "reason": "waits until its predecessor has ended" if self.waits else reason,
            "parts": {part.name: part.unhealthy_reason or "ready" for part in self.parts},
        }
        content = msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
        return Page(503 if wrong else 200, content, "application/json")


def plan_fields(
    host: Host, node: SgxNode, pool: EpcPool, choice: PublisherChoice, config: DevicePluginConfig
) -> Mapping[str, object]:
    """The log's event `epc.plan`: sizes in MiB, devices with number, mode and owner, launch control (None: unknown)."""
    driver, flags = node.driver, find_cpu_flags(host)
    return {
        "simulated": host.stand_ins,
        "publisher": choice.name,
        "reason": choice.reason,
        "true_mib": pool.true_mib,
        "reserve_mib": pool.reserve_mib,
        "overcommit": pool.overcommit,
        "units": pool.units,
        "numa_nodes": {str(section.numa_node): section.true_mib for section in pool.sections},
        "epc_source": node.epc.source,
        "driver": driver.kind,
        "devices": [found.describe() for found in (driver.enclave, driver.provision) if found is not None],
        "launch_control": None if flags is None else flags.launch_control,
        "provision": f"given to {config.provision_limit} at a time, namespaces {config.provision_namespaces}"
        if config.provision_limit
        else "given to no pod",
    }


async def serve(
    host: Host,
    config: DevicePluginConfig,
    *,
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    observe: Observer = log_event,
) -> None:
    """Serve until `stop` is set. `started` is called once the kubelet knows everything, with a line that says what."""
    config.check()
    pages = PluginPages(observe)
    async with AsyncExitStack() as resources:
        if config.http:
            page = StatusPage(config.http, pages.table())
            await resources.enter_async_context(background("status-page", page.run))
        node = await _find_node(host, config, stop, pages)
        if node is None:
            return
        pages.waits = True
        if not await resources.enter_async_context(_turn(config, stop)):
            return
        pages.waits = False
        plugin = DevicePlugin(host, config, node, pages.observe, started)
        pages.parts = plugin.parts
        plugin.log_plan()
        await run_until(stop, *plugin.actors())


class DevicePlugin:
    """What one node publishes, decided once, and the parts that keep it published."""

    def __init__(
        self,
        host: Host,
        config: DevicePluginConfig,
        node: SgxNode,
        observe: Observer,
        started: Callable[[str], None] | None = None,
    ) -> None:
        self._host = host
        self._config = config
        self._observe = observe
        self._node = node
        self._helper_epc = HelperEpc(host, config.helper_epc_mib)
        self._units = EpcUnits(
            host,
            config.resource,
            config.reserve_mib + self._helper_epc.reserve_mib,
            config.overcommit,
            prefers=len(node.epc.sections) > 1,
        )
        self.choice = self._choose(self._units.pool(node))
        self._started = started
        self._unregistered: set[str] = set()
        self.parts: list[Part] = [self._part(resource) for resource in self._resources()]
        if self.choice.name != "devices":
            self.parts += self._in_api()

    def log_plan(self) -> None:
        """Log what was found and how it is published."""
        fields = plan_fields(self._host, self._node, self._units.pool(self._node), self.choice, self._config)
        self._observe(PluginEvent("epc.plan", self._config.resource, fields))

    def summary(self) -> str:
        pool = self._units.pool(self._node)
        what = DRA_DRIVER if self.choice.name == "dra" else self._config.resource
        return f"{what} = {pool.units} ({pool.true_mib} MiB of EPC), as {self.choice.name}"

    def actors(self) -> list[Coroutine[Any, Any, None]]:
        """Everything that runs until the plugin is stopped."""
        return [*(part.run() for part in self.parts), self._look_again()]

    def _choose(self, pool: EpcPool) -> PublisherChoice:
        if not pool.units:
            raise ConfigError(
                f"nothing is left of {pool.true_mib} MiB of EPC beside a reserve of {pool.reserve_mib} MiB",
                advice="Lower reserve_mib, or helper_epc_mib.",
            )
        return choose_publisher(
            pool,
            wanted=self._config.publisher,
            unit_limit=self._config.unit_limit,
            topology=self._node.epc.numa_nodes > 1,
        )

    def _resources(self) -> Sequence[DeviceResource]:
        found = [] if self.choice.name == "dra" else self._of_devices()
        return found + self._of_helper()

    def _of_helper(self) -> list[DeviceResource]:
        """What quote helpers and their clients get; beside claims as well, because it is not in the pool."""
        config = self._config
        found: list[DeviceResource] = [self._helper_epc] if config.helper_epc_mib else []
        if not config.helper_folder:
            return found
        folder = Path(config.helper_folder)
        slots = HelperSlots(folder, config.helper_limit, name=config.helper_resource, patience=config.helper_patience)
        return [*found, slots]

    def _of_devices(self) -> list[DeviceResource]:
        config = self._config
        found: list[DeviceResource] = [self._units] if self.choice.name == "devices" else []
        # Slots of the enclave device everywhere, so that one pod description fits nodes of every size.
        found.append(DeviceSlots(self._host, "enclave", config.enclave_limit, config.enclave_resource))
        if config.provision_limit:
            guarded = ANY_NAMESPACE not in config.namespaces
            name = config.provision_resource
            found.append(DeviceSlots(self._host, "provision", config.provision_limit, name, guarded))
        return found

    def _part(self, resource: DeviceResource) -> Part:
        ready = self._registered(resource.name)
        guard = partial(self._check_holder, resource.name) if resource.guarded else None
        server = ResourceServer(resource, self._node, self._observe, guard)
        if self._config.registration == "registry":
            return RegistryRegistration(server, self._config, self._observe, ready)
        return SocketRegistration(server, self._config, self._observe, ready)

    def _in_api(self) -> list[Part]:
        """The amount in the node's status; or devices that claims share, and what is left of an amount withdrawn."""
        config, node, observe, dra = self._config, self._node, self._observe, self.choice.name == "dra"
        if not config.node_name:
            raise ConfigError(
                f"EPC of this node is published as {self.choice.name} ({self.choice.reason}), but no node is named",
                advice="Name the node with --node-name and give credentials; or choose --publisher devices.",
            )
        # Here, because a plugin that publishes devices needs no client of the Kubernetes API.
        from confcom.cluster.nodes import KubeNode, KubeResourceClaims, KubeResourceSlices

        publisher = KubeNode(config.node_name, kubeconfig=config.kubeconfig)
        status = EpcInNodeStatus(self._units, node, publisher, config, observe, withdrawn=dra)
        if not dra:
            return [status]
        devices = DraDevices(self._host, config.provision_limit, config.namespaces)
        names = devices.known(self._units.pool(node))
        claims = KubeResourceClaims(kubeconfig=config.kubeconfig)
        folder = CdiFolder(Path(config.cdi_dir), CDI_PREFIX)
        server = ClaimServer(config.node_name, devices, names, node, claims, folder, observe)
        slices = KubeResourceSlices(config.node_name, DRA_DRIVER, kubeconfig=config.kubeconfig)
        return [
            RegistryRegistration(server, config, observe, self._registered(DRA_DRIVER)),
            DevicesInApi(devices, self._units, node, slices, config, observe),
            status,
        ]

    def _registered(self, name: str) -> Callable[[], None]:
        """A callback for when the kubelet has taken a part. After the last of them `started` is called, once."""
        self._unregistered.add(name)

        def ready() -> None:
            self._unregistered.discard(name)
            if not self._unregistered and self._started is not None:
                started, self._started = self._started, None
                started(self.summary())

        return ready

    async def _check_holder(self, resource: str, ids: Sequence[str]) -> str:
        config = self._config
        namespaces = {config.helper_namespace} if resource == self._helper_epc.name else config.namespaces
        (held,) = await held_devices(config, resource)
        return check_holder(ids, held, resource=resource, namespaces=namespaces)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self._config.health_interval)
            try:
                node = find_sgx(self._host)
            except PlatformUnavailable as error:  # what was seen last counts
                self._observe(PluginEvent("node.look", self._config.resource, {"reason": error.message}, warning=True))
                continue
            if not node.epc.sections:
                # Ids must not vanish with the driver: what was there is unhealthy, not gone.
                node = replace(node, epc=replace(self._node.epc, missing=node.epc.missing))
            self._node = node
            if self._config.helper_epc_mib:
                await self._look_at_helpers()
            for part in self.parts:
                part.update(node)

    async def _look_at_helpers(self) -> None:
        with suppress(ConfcomError):  # the kubelet may be away; what was known last counts
            (held,) = await held_devices(self._config, self._helper_epc.name)
            pods: Counter[tuple[str, str]] = Counter()
            for holder, ids in held.items():
                pods[holder.namespace, holder.pod] += len(ids)
            self._helper_epc.held = max(pods.values(), default=0)


async def _find_node(host: Host, config: DevicePluginConfig, stop: asyncio.Event, pages: PluginPages) -> SgxNode | None:
    """The node with SGX; waits for SGX if the settings say so, None when stopped meanwhile."""
    logged = ""
    while not stop.is_set():
        node = find_sgx(host)
        if not node.obstacles:
            return node
        reason = "; ".join(node.obstacles)
        if not config.wait_for_sgx:
            raise PlatformUnavailable(
                f"this node offers no SGX: {reason}",
                advice="Run the plugin on nodes with SGX only (wait_for_sgx makes it wait), or --platform simulated.",
            )
        if reason != logged:
            structlog.get_logger().info("sgx.absent", reason=reason)
            pages.absent = logged = reason
        await wait_for(stop, config.health_interval)
    return None


@asynccontextmanager
async def _turn(config: DevicePluginConfig, stop: asyncio.Event) -> AsyncIterator[bool]:
    """While the block runs, this process alone serves the kubelet; False if it was stopped before its turn came.

    An update starts a plugin beside the present one and ends the present one when the new one is ready, so a plugin is
    ready when it could serve. The lock is on the kubelet's folder: no file in it survives the kubelet's start.
    """
    try:
        folder = os.open(config.plugin_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        check_want(error)
        yield True  # no kubelet yet, and so no predecessor
        return
    try:
        waited = False
        while not stop.is_set():
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    structlog.get_logger().info("plugin.waits", reason="another device plugin serves this kubelet")
                waited = True
                await wait_for(stop, config.watch_interval)
                continue
            if waited:
                await asyncio.sleep(SETTLE)
            yield True
            return
        yield False
    finally:
        os.close(folder)
