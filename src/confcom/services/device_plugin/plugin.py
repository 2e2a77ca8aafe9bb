"""The device plugin: makes the node's EPC a resource of Kubernetes and gives containers the SGX driver's devices.

It looks at the node, chooses how EPC is published, and runs one part per resource until it is stopped. It looks at the
node again every few seconds: devices that vanish make their resource unhealthy, and healthy when they come back.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog

from confcom.devices.host import Host
from confcom.devices.resources import (
    ANY_NAMESPACE,
    CdiFolder,
    DeviceResource,
    DeviceSlots,
    DraDevices,
    EpcUnits,
    HelperEpc,
    HelperSlots,
    check_holder,
)
from confcom.devices.sgx_node import EpcPool, PublisherChoice, SgxNode, choose_publisher, find_cpu_flags, find_sgx
from confcom.errors import ConfcomError, ConfigError, PlatformUnavailable
from confcom.protocols.dra_objects import DRIVER
from confcom.services.device_plugin.dra import CDI_PREFIX, ClaimServer
from confcom.services.device_plugin.epc_in_api import DevicesInApi, EpcInNodeStatus, InApi
from confcom.services.device_plugin.grpc import held_devices
from confcom.services.device_plugin.kubelet_plugin import (
    Registration,
    RegistryRegistration,
    ResourceServer,
    SocketRegistration,
)
from confcom.services.device_plugin.plugin_config import (
    DevicePluginConfig,
    DevicePluginMetrics,
    Observer,
    PluginEvent,
    log_event,
)
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.process import background, run_until, wait_for
from confcom.services.runtime.status_page import Handler, StatusPage, alive, component_registry, metrics_of

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
        """Path to handler."""
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
        "provision": _provision(config),
    }


def _provision(config: DevicePluginConfig) -> str:
    if not config.provision_limit:
        return "given to no pod"
    return f"given to {config.provision_limit} at a time, namespaces {config.provision_namespaces}"


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
        """The plan as one line."""
        pool = self._units.pool(self._node)
        what = DRIVER if self.choice.name == "dra" else self._config.resource
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
        slices = KubeResourceSlices(config.node_name, DRIVER, kubeconfig=config.kubeconfig)
        return [
            RegistryRegistration(server, config, observe, self._registered(DRIVER)),
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
            node = find_sgx(self._host)
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
    except OSError:
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
