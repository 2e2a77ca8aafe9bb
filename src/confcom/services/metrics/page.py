"""What the metrics exporter shows to Prometheus, from the last look alone, and the events that it writes about pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.cluster.client import open_client
from confcom.cluster.pod_events import PodEvent, report
from confcom.devices.processes import MiscUse
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.epc import EpcNode
from confcom.services.metrics.use import ContainerUse, Episode, Kind, NodeUse, Seen, explain

PREFIX = "confcom_epc"
CONTAINER = ("node", "namespace", "pod", "container")


def _of_kernel(value: Callable[[MiscUse], int | None]) -> Callable[[ContainerUse], int | None]:
    return lambda row: None if row.misc is None else value(row.misc)


_PER_CONTAINER: tuple[tuple[str, str, Callable[[ContainerUse], int | None]], ...] = (
    ("requested_bytes", "EPC that the container adds to what is requested of the node; its overhead has no container.",
     lambda row: row.scheduled),
    ("mapped_bytes", "Enclave memory that its processes have mapped: the most EPC it can use now.",
     lambda row: row.use.mapped),
    ("reserved_address_bytes", "Addresses kept free for its enclaves, which cannot be used now.",
     lambda row: row.use.reserved),
    ("processes", "Processes with enclave memory.", lambda row: row.use.processes),
    ("in_use_bytes", "EPC in use, where the kernel counts it.", _of_kernel(lambda misc: misc.current)),
    ("limit_bytes", "EPC that the kernel lets it have, where there is a limit.", _of_kernel(lambda misc: misc.limit)),
    ("limit_hits", "Times that the kernel held it at its limit.", _of_kernel(lambda misc: misc.hits)),
)  # fmt: skip


class EpcMetrics(Collector):
    """Filled by the exporter, read by the status page. `docs/reference/metrics.md` explains each metric."""

    def __init__(self, node: str) -> None:
        self.node = EpcNode(node)
        self.use: NodeUse | None = None
        self.seen: Seen | None = None
        self.sgx: SgxNode | None = None
        self.over: dict[tuple[str, str, str], tuple[Kind | None, float]] = {}
        """What is wrong with each container, by its labels, and for how many seconds."""
        self.age: Callable[[], float] = lambda: 0.0
        self.pods_known = False
        self.held = 0
        self.episodes: Counter[Kind] = Counter()
        self.reports: Counter[str] = Counter()

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        if self.use is not None:
            yield from self._containers(self.use)
            yield from self._node_use(self.use)
        if self.seen is not None:
            yield from self._pass(self.seen)
        if self.sgx is not None:
            size = GaugeMetricFamily(
                f"{PREFIX}_node_size_bytes", "EPC that the node has.", labels=["node", "numa_node"]
            )
            for section in self.sgx.epc.sections:
                number = "unknown" if section.numa_node is None else str(section.numa_node)
                size.add_metric([self.node.name, number], section.size)
            yield size
        yield self._one("pods_known", "1 when the pods of the node are known from the API.", int(self.pods_known))
        yield self._one("enforced_containers", "Containers that the kernel holds to their requests.", self.held)
        yield self._counts("over_limit_episodes", "Containers that were found over, by kind.", "kind",
                           {kind: self.episodes[kind] for kind in Kind})  # fmt: skip
        yield self._counts("reports", "Events written, by outcome.", "outcome", self.reports)

    def _containers(self, use: NodeUse) -> Iterator[Metric]:
        for name, text, value in _PER_CONTAINER:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=CONTAINER)
            for labels, rows in _by_labels(use):
                found = [number for row in rows if (number := value(row)) is not None]
                if found:
                    family.add_metric([self.node.name, *labels], sum(found))
            if name == "requested_bytes":
                for pod, size in use.overheads:
                    family.add_metric([self.node.name, pod.namespace, pod.name, ""], size)
            yield family
        over = GaugeMetricFamily(
            f"{PREFIX}_over_limit", "1 while the container has more than it requested.", labels=[*CONTAINER, "kind"]
        )
        lasting = GaugeMetricFamily(
            f"{PREFIX}_over_limit_seconds", "Since when it has more than it requested; 0 while it has not.",
            labels=CONTAINER,
        )  # fmt: skip
        for labels, (kind, seconds) in self.over.items():
            for one in Kind:
                over.add_metric([self.node.name, *labels, one], int(kind is one))
            lasting.add_metric([self.node.name, *labels], seconds)
        yield over
        yield lasting

    def _node_use(self, use: NodeUse) -> Iterator[Metric]:
        if self.pods_known:
            yield self._one("node_requested_bytes", "EPC that the node's pods request.", use.requested)
        yield self._one("node_mapped_bytes", "Enclave memory mapped on the node, by any process.", use.mapped)
        yield self._one("node_outside_bytes", "Of that, by processes in no container.", use.outside.mapped)
        if self.node.allocatable is not None:
            yield self._one("node_allocatable_bytes", "EPC that pods may request.", self.node.allocatable)
        if use.in_use is not None:
            yield self._one("node_in_use_bytes", "EPC in use by containers, where the kernel counts it.", use.in_use)

    def _pass(self, seen: Seen) -> Iterator[Metric]:
        yield self._one("pass_seconds", "What the last look took.", seen.took)
        yield self._one("pass_age_seconds", "Since the last look, to which all figures belong.", self.age())
        yield self._one("pass_processes", "Processes that it saw.", seen.processes)
        yield self._one("pass_unreadable_processes", "Of those, processes whose maps were refused.", seen.unreadable)
        if seen.capacity is not None:
            yield self._one("node_capacity_bytes", "EPC that the kernel counts in the misc cgroup.", seen.capacity)
        if seen.reclaim_seconds is not None:
            family = CounterMetricFamily(
                f"{PREFIX}_reclaim_seconds",
                "Processor time of the kernel's thread that pages EPC out.",
                labels=["node"],
            )
            family.add_metric([self.node.name], seen.reclaim_seconds)
            yield family

    def _one(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["node"])
        family.add_metric([self.node.name], value)
        return family

    def _counts(self, name: str, text: str, label: str, counts: dict[Kind, int] | Counter[str]) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["node", label])
        for value, count in counts.items():
            family.add_metric([self.node.name, str(value)], count)
        return family


def _by_labels(use: NodeUse) -> Iterator[tuple[tuple[str, str, str], list[ContainerUse]]]:
    # A pod that was deleted and created again with the same name is there twice for a moment; a series only once.
    found: dict[tuple[str, str, str], list[ContainerUse]] = {}
    for row in use.containers:
        found.setdefault(row.labels, []).append(row)
    yield from found.items()


CONTROLLER = "confcom.dev/metrics"
REASONS = {Kind.OVER_LIMIT: "EpcOverLimit", Kind.NO_REQUEST: "EpcNotRequested"}
MAX_WAITING = 256
"""Reports that wait for the API; of more, the oldest are dropped."""
AT_ONCE = 16
"""Reports per look, so that a slow API does not delay the next look at the node."""


class EpcReports:
    """Reports of one node: events of pods. What the API does not take is tried again; `outcomes` counts."""

    def __init__(self, node: str, *, kubeconfig: str | None, outcomes: Counter[str]) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._outcomes = outcomes
        self._waiting: list[Episode] = []

    def add(self, episode: Episode) -> None:
        """Queue it for the next `send`."""
        self._waiting = [*self._waiting, episode][-MAX_WAITING:]

    async def send(self, lasts: Callable[[Episode], bool]) -> ConfcomError | None:
        """Write what waits, and return the error that stopped it. What failed stays queued while its episode lasts."""
        now, later = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        failure = None
        if now:
            try:
                await self._write(now)
            except ConfcomError as error:
                self._outcomes["failed"] += 1
                failure = error
        # At the end: a pod that is gone, or an event that is refused, must not delay the others.
        self._waiting = [*later, *[one for one in now if lasts(one)]]
        return failure

    async def _write(self, episodes: list[Episode]) -> None:
        """Write and remove from the list, one by one; at an error its episode moves to the end."""
        client: Any
        async with open_client(self._kubeconfig, field_manager="confcom-metrics") as client:
            while episodes:
                episode = episodes.pop(0)
                try:
                    self._outcomes[await self._report(client, episode)] += 1
                except ConfcomError:
                    episodes.append(episode)
                    raise

    async def _report(self, client: Any, episode: Episode) -> str:  # noqa: ANN401 - of lightkube
        now = datetime.now(UTC)  # noqa: TID251 - services read the clock
        event = event_of(episode, self._node)
        return await report(client, event, now, controller=CONTROLLER, instance=self._node[:128])


def event_of(episode: Episode, node: str) -> PodEvent:
    """The event that reports an episode."""
    row = episode.row
    return PodEvent(
        namespace=episode.pod.namespace,
        pod=episode.pod.name,
        uid=episode.pod.uid,
        container=row.container,
        reason=REASONS[episode.kind],
        note=explain(episode, node=node, exact=row.misc is not None),
        action="Watching",
        key=row.id,
    )
