"""The metrics exporter: measures the use of EPC on its node every few seconds, and reports containers over their limit.

Failures are logged, and tried again: without the API there are figures without names; without the right to read a
process its figures are missing, and the number of such processes is a metric.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import structlog

from confcom.cluster.nodes import NodePods
from confcom.devices.host import Host
from confcom.devices.processes import (
    EnclaveDevice,
    MiscCgroup,
    MiscUse,
    ProcessFinder,
    ReclaimThread,
    count_use,
    find_misc,
)
from confcom.devices.sgx_node import SgxNode, find_sgx
from confcom.errors import ConfcomError, ConfigError
from confcom.protocols.custom_metrics import EXPORTERS
from confcom.protocols.epc import CANONICAL
from confcom.services.metrics.page import EpcMetrics, EpcReports, Episode, Episodes, NodeUse, Seen, put_together
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.process import repeat, run_until
from confcom.services.runtime.status_page import StatusPage, component_registry, metrics_of, serve_issued_page

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `confcom metrics`; the defaults are those for production."""

    node_name: str = ""
    """This node's name in the Kubernetes API."""
    kubeconfig: str | None = None
    """Credentials for the API; without it those of the pod's service account."""
    host_root: str = "/"
    """Where this process sees the host's /proc, /sys and /dev."""
    simulated_node: str = ""
    """Folder of a simulated node, where the device is a file; empty on real ones."""
    resource: str = CANONICAL
    """Name of the EPC resource that the node publishes, counted in MiB."""

    http: str = "[::]:9466"
    """Where /healthz, /readyz and /metrics are served."""
    https: str = ""
    """Where /metrics is served over TLS too, for the metrics API; empty for nowhere."""
    https_ca: str = "/etc/confcom/exporters-ca"
    """Folder with tls.crt and tls.key of the CA that issues its certificate."""
    interval: _Seconds = 10.0
    """Seconds between two looks at the processes."""

    tolerance: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    """Share of its request that a container may exceed before it counts as over."""
    patience: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    """Seconds that it must be over without a break before that is reported."""
    events: bool = True
    """Report it as an event of the pod, beside the metric."""
    enforce: Literal["auto", "on", "off"] = "auto"
    """Let the kernel hold containers to their requests: where it can, never, or `on`: not ready where it cannot."""

    def check(self) -> None:
        """Check that the node is named; else a `ConfigError`."""
        if not self.node_name:
            raise ConfigError(
                "which node is this?",
                advice="Name it with --node-name or CONFCOM_METRICS_NODE_NAME, in a pod from spec.nodeName.",
            )


@dataclass(frozen=True, slots=True)
class Enforcement:
    """One round: how many limits were changed, how many containers have one, and why it failed for others."""

    changed: int
    held: int
    failures: tuple[str, ...]


class EpcMeter:
    """Measures a node's use of EPC, and has the kernel limit containers to what they requested. Blocking.

    `host` is where the processes are, `node` where the devices are: another only on a simulated node.
    """

    def __init__(self, host: Host, node: Host) -> None:
        self.processes = ProcessFinder(host)
        self._host = host
        self._node = node
        self._reclaim = ReclaimThread(host)
        self._misc: MiscCgroup | None = None
        self._groups: Mapping[str, str] = {}
        self.sgx: SgxNode = find_sgx(node)

    @property
    def enforceable(self) -> bool:
        """Whether the kernel counted EPC per cgroup at the last look."""
        return self._misc is not None

    def look(self) -> Seen:
        started = time.perf_counter()
        self.sgx = find_sgx(self._node)
        # Every time: a driver may be loaded, or a device appear under another number.
        seen = self.processes.look(EnclaveDevice.of(self._node))
        self._misc = find_misc(self._host)
        self._groups = {} if self._misc is None else self._misc.containers()
        return Seen(
            use=count_use(seen.enclaves),
            groups=self._uses(),
            capacity=None if self._misc is None else self._misc.capacity,
            reclaim_seconds=self._reclaim.seconds(),
            processes=seen.processes,
            unreadable=seen.unreadable,
            took=time.perf_counter() - started,
        )

    def enforce(self, use: NodeUse) -> Enforcement:
        """Write what each container requested into its cgroup, where the limit there differs."""
        changed = held = 0
        failures: list[str] = []
        for row in use.containers:
            group = self._groups.get(row.id)
            # A request that is known in part is no limit: the rest may be what the enclave needs.
            if self._misc is None or group is None or row.requested is None or not row.judged:
                continue
            try:
                changed += self._misc.limit(group, row.requested)
                held += 1
            except ConfcomError as error:
                failures.append(f"{error.message}. {error.advice()}")
        return Enforcement(changed, held, tuple(failures))

    def _uses(self) -> dict[str, MiscUse]:
        if self._misc is None:
            return {}
        found = {container: self._misc.use(group) for container, group in self._groups.items()}
        return {container: use for container, use in found.items() if use is not None}


RETRY_MAX = 60.0
"""Most seconds between two attempts to reach the API; the first is 1, and it doubles."""
NODE_INTERVAL = 30.0
"""Seconds between two looks at what the node may hand out."""
STUCK = 300.0
"""Seconds without a look after which this process counts as stuck."""


class MetricsExporter:
    """One node's exporter."""

    def __init__(self, config: MetricsConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        config.check()
        host = Host(Path(config.host_root))
        node = Host(Path(config.simulated_node), stand_ins=True) if config.simulated_node else host
        self.metrics = EpcMetrics(config.node_name)
        self._config = config
        self._meter = EpcMeter(host, node)
        self._pods = NodePods(config.node_name, kubeconfig=config.kubeconfig, resource=config.resource)
        self._episodes = Episodes(tolerance=config.tolerance, patience=config.patience)
        self._reports = EpcReports(config.node_name, kubeconfig=config.kubeconfig, outcomes=self.metrics.reports)
        self._monotonic = monotonic
        self._looked: float | None = None
        self._begun = monotonic()
        self._enforcement = Enforcement(0, 0, ())
        self._logged: dict[str, str] = {}
        self._log = structlog.get_logger()
        self._registry = component_registry("metrics")
        self._registry.register(self.metrics)
        self.metrics.age = lambda: monotonic() - (self._looked or self._begun)

    def actors(self) -> list[Coroutine[Any, Any, None]]:
        """What looks, follows the pods, reports and serves, until cancelled."""
        pages = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": metrics_of(self._registry)}
        found = [
            StatusPage(self._config.http, pages).run(),
            repeat(self._pods.follow, self._failed("pods"), pause=0.0, longest=RETRY_MAX),
            repeat(self._pods.refresh, self._failed("node"), pause=NODE_INTERVAL, longest=RETRY_MAX),
            self._look_again(),
        ]
        if self._config.https:
            own, ca = {"/metrics": pages["/metrics"]}, Path(self._config.https_ca)
            found.append(serve_issued_page(self._config.https, own, ca, EXPORTERS["metrics"]))
        return found

    async def look(self) -> NodeUse:
        seen = await asyncio.to_thread(self._meter.look)
        use = put_together(self._pods.pods.values(), seen, self._pods.claims)
        if self._config.enforce != "off" and self._pods.known:
            self._enforcement = await asyncio.to_thread(self._meter.enforce, use)
            self._log_enforcement(self._enforcement)
        for episode in self._episodes.step(use.containers, self._monotonic()):
            self._begin(episode)
        self._show(use)
        self.metrics.seen, self.metrics.sgx = seen, self._meter.sgx
        if stuck := self._meter.processes.stuck:
            reason = f"processes map a file of a server that does not answer: {', '.join(stuck)}"
            self._warn("processes.stuck", reason, advice="End their pods: what they use of EPC cannot be read.")
        if seen.unreadable > len(stuck):
            advice = "Run as root with CAP_SYS_PTRACE; AppArmor must not confine the container."
            self._warn("processes.unreadable", "the kernel does not show us every process's memory", advice=advice)
        self._looked = self._monotonic()
        failure = await self._reports.send(lambda episode: self._episodes.lasts(episode.row))
        if failure is not None:
            self._warn("epc.report", failure.message, advice=failure.advice())
        return use

    def _show(self, use: NodeUse) -> None:
        metrics = self.metrics
        metrics.use, metrics.node, metrics.pods_known = use, self._pods.node, self._pods.known
        metrics.held = self._enforcement.held
        metrics.over = {row.labels: (None, 0.0) for row in use.containers if row.judged and row.pod is not None}
        now = self._monotonic()
        for row in use.containers:
            if (kind := self._episodes.judge(row)) is not None:
                metrics.over[row.labels] = kind, self._episodes.over_for(row, now)

    def _begin(self, episode: Episode) -> None:
        self.metrics.episodes[episode.kind] += 1
        row = episode.row
        namespace, pod, container = row.labels
        self._log.warning("epc.over", kind=episode.kind.value, namespace=namespace, pod=pod, container=container,
                          requested=row.requested, counted=row.counted)  # fmt: skip
        if self._config.events:
            self._reports.add(episode)

    async def _look_again(self) -> None:
        while True:
            try:
                await self.look()
            except ConfcomError as error:  # the figures stay, and grow old
                self._warn("node.look", error.message, advice=error.advice())
            await asyncio.sleep(self._config.interval)

    def _failed(self, what: str) -> Callable[[ConfcomError], None]:
        return lambda error: self._warn(what, error.message, advice=error.advice())

    def _log_enforcement(self, done: Enforcement) -> None:
        if done.changed:
            self._log.info("epc.enforced", set_anew=done.changed, held=done.held)
        for failure in done.failures[:1]:
            self._warn("epc.enforce", failure)

    def _warn(self, event: str, reason: str, **fields: str) -> None:
        # Once per reason, not in every round.
        if self._logged.get(event) != reason:
            self._logged[event] = reason
            self._log.warning(event, outcome="failed", reason=reason, **fields)

    async def _healthz(self) -> Page:
        since = self._monotonic() - (self._looked or self._begun)
        if since > max(STUCK, 10 * self._config.interval):
            return Page(503, f"no look at the node for {since:.0f} s\n".encode())
        return Page(200, b"ok\n")

    async def _readyz(self) -> Page:
        if self._looked is None:
            return Page(503, b"the first look at the node is not done\n")
        if not self._pods.known:
            return Page(503, b"the pods of the node are not known yet\n")
        if self._config.enforce == "on" and not self._meter.enforceable:
            return Page(503, b"enforce is on, and this kernel counts no sgx_epc in the misc cgroup\n")
        if self._enforcement.failures and self._config.enforce == "on":
            return Page(503, f"{self._enforcement.failures[0]}\n".encode())
        return Page(200, b"ready\n")


async def serve(config: MetricsConfig, *, stop: asyncio.Event, started: Callable[[str], None] | None = None) -> None:
    """Run an exporter until `stop` is set."""
    exporter = MetricsExporter(config)
    if started is not None:
        started(f"node {config.node_name}, {config.http}, every {config.interval:g} s")
    await run_until(stop, *exporter.actors())
