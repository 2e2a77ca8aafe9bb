"""EPC that the containers of a node request and use, the episodes in which one uses more, and how that is told: what
the exporter shows to Prometheus, from the last look alone, and the events that it writes about pods.

An episode begins when a container has been over for `patience` seconds without a break, is reported once, and ends when
the container has been within its request for as long, or is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.cluster.client import open_client
from confcom.cluster.nodes import PodEvent, report_event
from confcom.devices.processes import CgroupOwner, EnclaveUse, MiscUse
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.epc import CANONICAL, MIB, EpcContainer, EpcNode, EpcPod, in_mib

NONE = EnclaveUse(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the node. `reclaim_seconds` None means that the kernel has no thread for it; sizes in bytes."""

    use: Mapping[CgroupOwner, EnclaveUse]
    groups: Mapping[str, MiscUse]
    capacity: int | None
    reclaim_seconds: float | None
    processes: int
    unreadable: int
    took: float


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """A container. `pod` None: the API shows no such pod; `container` is then what its cgroup says.

    `requested` None: it requests no EPC. `judged` is false where its request is not known. `scheduled` is its part of
    the node's figure, None where it has none.
    """

    pod: EpcPod | None
    container: str
    id: str
    requested: int | None
    use: EnclaveUse
    misc: MiscUse | None = None
    judged: bool = True
    scheduled: int | None = None

    @property
    def counted(self) -> int:
        """Bytes to compare with the request: those in EPC where the kernel counts them, else those mapped."""
        return self.use.mapped if self.misc is None else self.misc.current

    @property
    def labels(self) -> tuple[str, str, str]:
        """Namespace, pod, container."""
        return ("", "", self.container) if self.pod is None else (self.pod.namespace, self.pod.name, self.container)


@dataclass(frozen=True, slots=True)
class NodeUse:
    """All containers that request or use EPC, and the use of processes outside containers.

    `overheads` has the EPC that pods request beside their containers (the overhead of a runtime class).
    """

    containers: tuple[ContainerUse, ...]
    outside: EnclaveUse
    overheads: tuple[tuple[EpcPod, int], ...] = ()

    @property
    def requested(self) -> int:
        """Bytes that the node's pods request, as the scheduler counts them: each claim once, no finished pods."""
        return sum(one.scheduled or 0 for one in self.containers) + sum(size for _, size in self.overheads)

    @property
    def mapped(self) -> int:
        """Bytes of enclave memory of the whole node."""
        return self.outside.mapped + sum(one.use.mapped for one in self.containers)

    @property
    def in_use(self) -> int | None:
        """Bytes in EPC, of the containers; None where the kernel does not count."""
        found = [one.misc.current for one in self.containers if one.misc is not None]
        return sum(found) if found else None


def put_together(pods: Iterable[EpcPod], seen: Seen, claims: Mapping[tuple[str, str], int] | None = None) -> NodeUse:
    """Match by the runtime's container id. `claims` has the bytes of ResourceClaims, by namespace and name."""
    # Sorted, so that a claim that several pods use always counts with the same one.
    pods = sorted(pods, key=lambda pod: (pod.namespace, pod.name, pod.uid))
    counted: set[tuple[str, str]] = set()
    by_container = {owner.container: (owner, use) for owner, use in seen.use.items() if owner.container is not None}
    found = []
    for pod in pods:
        for container in pod.containers:
            _, use = by_container.pop(container.id, (None, NONE))
            row = _row(pod, container, use, seen.groups.get(container.id), claims or {}, counted)
            if row.requested is not None or use.processes:
                found.append(row)
    found += [_stranger(owner, use, seen.groups) for owner, use in by_container.values()]
    return NodeUse(
        tuple(sorted(found, key=lambda row: (*row.labels, row.id))),
        _add(use for owner, use in seen.use.items() if owner.container is None),
        tuple((pod, pod.overhead) for pod in pods if pod.overhead and not pod.finished),
    )


def _row(
    pod: EpcPod,
    container: EpcContainer,
    use: EnclaveUse,
    misc: MiscUse | None,
    claims: Mapping[tuple[str, str], int],
    counted: set[tuple[str, str]],
) -> ContainerUse:
    if pod.finished:
        # It holds nothing any more; its processes may take a moment to end.
        return ContainerUse(pod, container.name, container.id, None, use, misc, judged=False)
    claimed = [claims.get((pod.namespace, name)) for name in container.claims]
    known = container.requested is not None or any(claimed)
    requested = (container.requested or 0) + sum(size or 0 for size in claimed) if known else None
    # A claim that could not be read may be one for EPC: then this container is not judged.
    judged = None not in claimed
    new = {(pod.namespace, name) for name in container.claims} - counted
    counted |= new
    scheduled = container.scheduled + sum(claims.get(claim, 0) for claim in new) if known else None
    return ContainerUse(pod, container.name, container.id, requested, use, misc, judged, scheduled)


def _stranger(owner: CgroupOwner, use: EnclaveUse, groups: Mapping[str, MiscUse]) -> ContainerUse:
    container = owner.container or ""
    name = f"pod {owner.pod} container {container[:12]}" if owner.pod else f"container {container[:12]}"
    return ContainerUse(None, name, container, None, use, groups.get(container), judged=False)


def _add(uses: Iterable[EnclaveUse]) -> EnclaveUse:
    rows: Iterator[tuple[int, int, int]] = ((use.mapped, use.reserved, use.processes) for use in uses)
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return EnclaveUse(*sums) if sums else NONE


class Kind(StrEnum):
    """What is wrong with a container's use."""

    OVER_LIMIT = "over-limit"
    NO_REQUEST = "no-request"


@dataclass(frozen=True, slots=True)
class Episode:
    """A container to report."""

    kind: Kind
    pod: EpcPod
    row: ContainerUse


@dataclass(slots=True)
class _State:
    kind: Kind
    since: float
    reported: bool = False
    within_since: float | None = None


class Episodes:
    """`tolerance` is a share of the request that may be exceeded; `patience` in seconds."""

    def __init__(self, *, tolerance: float, patience: float) -> None:
        self._tolerance = tolerance
        self._patience = patience
        self._states: dict[tuple[str, str], _State] = {}

    def step(self, rows: Iterable[ContainerUse], now: float) -> list[Episode]:
        """The episodes that begin with this look at the containers. `now` is of a monotonic clock, in seconds."""
        begun = []
        present = {key: row for row in rows if (key := _key(row)) is not None}
        for key in self._states.keys() - present.keys():
            del self._states[key]
        for key, row in present.items():
            kind = self.judge(row)
            if kind is None:
                self._within(key, now)
            elif self._over(key, kind, now) and row.pod is not None:
                begun.append(Episode(kind, row.pod, row))
        return begun

    def judge(self, row: ContainerUse) -> Kind | None:
        """What is wrong with a container now; None if nothing is, or if it cannot be judged."""
        if not row.judged or row.pod is None:
            return None
        if row.requested is None:
            return Kind.NO_REQUEST if row.counted else None
        return Kind.OVER_LIMIT if row.counted > row.requested * (1 + self._tolerance) else None

    def over_for(self, row: ContainerUse, now: float) -> float:
        """Seconds for which the container has been over its request without a break; 0 while it is within."""
        key = _key(row)
        state = None if key is None else self._states.get(key)
        over = state is not None and state.kind is Kind.OVER_LIMIT and state.within_since is None
        return now - state.since if state is not None and over else 0.0

    def lasts(self, row: ContainerUse) -> bool:
        """Whether the container is in an episode that was reported."""
        key = _key(row)
        state = None if key is None else self._states.get(key)
        return state is not None and state.reported

    def _over(self, key: tuple[str, str], kind: Kind, now: float) -> bool:
        state = self._states.get(key)
        if state is None or state.kind is not kind:
            state = self._states[key] = _State(kind, now)
        state.within_since = None
        if state.reported or now - state.since < self._patience:
            return False
        state.reported = True
        return True

    def _within(self, key: tuple[str, str], now: float) -> None:
        state = self._states.get(key)
        if state is None:
            return
        if state.within_since is None:
            state.within_since = now
        if not state.reported or now - state.within_since >= self._patience:
            del self._states[key]


def explain(episode: Episode, *, node: str, exact: bool) -> str:
    """What happened, with figures, and what to do, in two or three sentences."""
    row = episode.row
    what = "in EPC" if exact else "of enclave memory mapped"
    has = f"Container {row.container} has {in_mib(row.counted)} {what}"
    if episode.kind is Kind.NO_REQUEST:
        return (
            f"{has} on node {node} and requests no EPC, so the scheduler does not count it. "
            f"Set a limit of {CANONICAL} of at least {_whole_mib(row.counted)}."
        )
    size = _whole_mib(row.counted)
    raised = f"capacity epc of its claim to {size}Mi" if _claims(episode) else f"limit {CANONICAL} to {size}"
    return (
        f"{has} on node {node} and requested {in_mib(row.requested or 0)}. All enclaves of the node share its EPC: "
        f"more than was requested slows all of them down. Raise the {raised}, or make the enclave smaller."
    )


def _claims(episode: Episode) -> bool:
    """Whether the container has its EPC through claims alone."""
    return any(
        one.name == episode.row.container and one.claims and one.requested is None for one in episode.pod.containers
    )


def _key(row: ContainerUse) -> tuple[str, str] | None:
    return (row.pod.uid, row.id) if row.pod is not None and row.id else None


def _whole_mib(size: int) -> int:
    return -(-size // MIB)


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
        return await report_event(client, event, now, controller=CONTROLLER, instance=self._node[:128])


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
