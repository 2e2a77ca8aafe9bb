"""Values of pods, and of the objects above them, from the pages of the exporters and the pods of the cluster; pure.

A pod is joined with the exporters of its own node only, so that a node can say nothing about pods of other nodes.
Figures that are too old are left out here, because HPA ignores timestamps.
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from confcom.errors import FormatError
from confcom.protocols.custom_metrics import ALL, RESOURCES, MetricRequest, Sample, ScaledPod, Value, parse_samples

EPC = "confcom_epc_"
QUOTES = "confcom_quote_helper_quotes_total"
AGE = f"{EPC}pass_age_seconds"
KNOWN = f"{EPC}pods_known"
_POD = "pod "
OTHERS = "others"
"""The helper's label of peers that it no longer counts apart."""
WINDOW = 60.0
"""Seconds over which quotes per second are counted."""
WINDOW_MIN = 4.0
"""Seconds between two pages of a helper that are enough for a rate."""
MAX_PEERS = 4096
"""Pods on a page; more than a node has, and than a helper counts apart."""
MAX_VALUE = float(1 << 60)
MAX_NAMED = 3
"""Nodes that a message names."""


PodUse: TypeAlias = Mapping[str, float]
"""What an exporter says of a pod, by the ends of metrics' names: bytes, processes, seconds. 0: nothing of the kind."""
_OVER = "over_limit_seconds"
_USES = tuple(f"{EPC}{name}" for name in ("requested_bytes", "mapped_bytes", "in_use_bytes", "processes", _OVER))


class EpcPage(NamedTuple):
    """A page of the exporter of EPC use; `age` is the seconds since its last look at the node."""

    age: float
    pods: Mapping[tuple[str, str], PodUse]


def parse_epc_page(text: str) -> EpcPage:
    """Read the page; `FormatError` for one without the age of its figures, or of an exporter that knows no pods."""
    age: float | None = None
    pods: dict[tuple[str, str], defaultdict[str, float]] = {}
    for sample in _samples(text, (AGE, KNOWN, *_USES)):
        if sample.name == AGE:
            age = sample.value
            continue
        if sample.name == KNOWN:
            if not sample.value:  # its page has their use without their names
                raise FormatError("does not know the pods of its node yet", structure="metrics", field=KNOWN)
            continue
        place = (sample.labels.get("namespace", ""), sample.labels.get("pod", ""))
        if place not in pods:
            _check_count(pods)
            pods[place] = defaultdict(float)
        use, name = pods[place], sample.name.removeprefix(EPC)
        # Seconds over the limit are those of the container that is over for longest.
        use[name] = max(use[name], sample.value) if name == _OVER else use[name] + sample.value
    if age is None:
        raise FormatError("does not say how old its figures are", structure="metrics", field=AGE)
    return EpcPage(age, pods)


def parse_quotes_page(text: str) -> dict[str, float]:
    """Quotes made so far, by the uid of the pod; `others` for all peers that are not counted apart."""
    found: dict[str, float] = {}
    for sample in _samples(text, (QUOTES,)):
        peer = sample.labels.get("peer", "")
        if peer.startswith(_POD) or peer == OTHERS:
            _check_count(found)
            found[peer.removeprefix(_POD)] = sample.value
    return found


def _samples(text: str, names: tuple[str, ...]) -> Iterator[Sample]:
    """Samples with amounts that can be added up. An attacker with root on a node can write any number there."""
    for sample in parse_samples(text, names):
        if not 0 <= sample.value < MAX_VALUE:
            raise FormatError(f"{sample.value} is no amount", structure="metrics", field=sample.name)
        yield sample


def _check_count(found: Sized) -> None:
    if len(found) >= MAX_PEERS:
        raise FormatError(f"there are more than {MAX_PEERS} pods", structure="metrics", field="")


@dataclass(slots=True)
class Exporter:
    """What is known of one exporter: its last page, when it was read (monotonic seconds), and why no newer one was.

    `since` is when its pod was found.
    """

    component: str
    node: str
    address: str
    since: float = 0.0
    read: float | None = None
    failure: str = "not asked yet"
    epc: EpcPage | None = None
    quotes: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)

    @property
    def title(self) -> str:
        return f"{self.component} of node {self.node}"

    def age(self, now: float) -> float | None:
        """Seconds since its figures were taken; None if there are none."""
        if self.read is None:
            return None
        return now - self.read + (self.epc.age if self.epc is not None else 0.0)

    def take_epc(self, page: EpcPage, now: float) -> None:
        """Keep a page of the exporter of EPC use."""
        self.epc, self.read, self.failure = page, now, ""

    def take_quotes(self, page: dict[str, float], now: float) -> None:
        """Keep a page of a quote helper, and those of the last `WINDOW` seconds."""
        self.read, self.failure = now, ""
        if self.quotes and _counts_anew(self.quotes[-1][1], page):
            self.quotes.clear()
        self.quotes.append((now, page))
        while now - self.quotes[0][0] > WINDOW:
            self.quotes.popleft()

    def quote_rate(self, uid: str) -> float | None:
        """Quotes per second of a pod; None where the pages are of too short a time.

        A pod that is no longer counted apart had none for long.
        """
        (first, before), (last, after) = self.quotes[0], self.quotes[-1]
        if last - first < WINDOW_MIN:
            return None
        return max(0.0, after.get(uid, 0) - before.get(uid, 0)) / (last - first)


def _counts_anew(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether a helper was started again between two pages, and counts from 0.

    It counts a peer that it no longer counts apart with the others: then the sum stays.
    """
    fell = any(after.get(peer, 0 if OTHERS not in after else count) < count for peer, count in before.items())
    return fell or sum(after.values()) < sum(before.values())


class Refused(Exception):
    """A request that gets no values: an HTTP status, and a sentence for the object's owner."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _used(use: PodUse) -> float:
    """Bytes in EPC where the kernel counts them, else those mapped."""
    return use["in_use_bytes"] if "in_use_bytes" in use else use["mapped_bytes"]


def _ratio(uses: list[PodUse]) -> float | None:
    """Of those that request EPC: a pod without a request has no ratio."""
    asked = [use for use in uses if use["requested_bytes"]]
    return sum(map(_used, asked)) / sum(use["requested_bytes"] for use in asked) if asked else None


QUOTE_RATE = "sgx_quotes_per_second"
_EPC_METRICS: Mapping[str, Callable[[list[PodUse]], float | None]] = {
    "sgx_epc_used_bytes": lambda uses: sum(map(_used, uses)),
    "sgx_epc_used_ratio": _ratio,
    "sgx_enclave_processes": lambda uses: sum(use["processes"] for use in uses),
    "sgx_epc_over_limit_seconds": lambda uses: max(use[_OVER] for use in uses),
}
"""The value of one pod, or of several, by the metric's name."""
METRICS = (*_EPC_METRICS, QUOTE_RATE)
_NAMES = {"metrics": "exporter of EPC use", "quote-helper": "quote helper"}
"""What messages call the exporters."""


class _Found(NamedTuple):
    """A pod's figures: `what` is its use of EPC, or its quotes per second; `age` in seconds."""

    name: str
    what: PodUse | float
    age: float


class Figures:
    """What is known now. `exporters` are by component and node; a node has two of them during an upgrade, or none."""

    def __init__(self, pods: Callable[[], Iterable[ScaledPod]], *, stale_after: float) -> None:
        self.exporters: Mapping[str, Mapping[str, list[Exporter]]] = {}
        self._pods = pods
        self._stale_after = stale_after

    def answer(self, request: MetricRequest, *, monotonic: float, now: datetime) -> list[Value]:
        """The values that are asked for; `Refused` with the reason where there are none."""
        if request.resource not in RESOURCES:
            raise Refused(404, f"{request.resource[:80]} have no metrics here; there are {', '.join(RESOURCES)}")
        if request.metric not in METRICS:
            raise Refused(404, f"there is no metric {request.metric[:80]!r} here; there are {', '.join(METRICS)}")
        chosen = [pod for pod in self._chosen(request) if pod.node and not pod.finished]
        found, missing = self._look_up(request.metric, chosen, monotonic)
        together = request.resource != "pods"
        if missing and (together or not found):
            # A sum without some of the pods would have HPA end others.
            raise Refused(503, _no_fresh(missing))

        @functools.cache
        def stamp(age: float) -> str:
            return f"{now - timedelta(seconds=age):%Y-%m-%dT%H:%M:%SZ}"

        if together:
            values = [_value(request, request.name, found, stamp)] if found else []
        else:
            values = [_value(request, one.name, [one], stamp) for one in found]
        given = [value for value in values if value is not None]
        if not given and (chosen or together or request.name != ALL):
            raise Refused(404, _nothing(request, len(chosen)))
        return given

    def _chosen(self, request: MetricRequest) -> Iterator[ScaledPod]:
        for pod in self._pods():
            if pod.namespace != request.namespace:
                continue
            if request.resource == "namespaces":
                yield pod
            elif request.resource != "pods":
                if (request.resource, request.name) in pod.owners:
                    yield pod
            elif request.name in (ALL, pod.name) and all(one.matches(pod.labels) for one in request.selector):
                yield pod

    def _look_up(
        self, metric: str, pods: Iterable[ScaledPod], monotonic: float
    ) -> tuple[list[_Found], dict[str, list[str]]]:
        """The figures of pods; and running pods that request EPC without fresh ones, by node."""
        component = "quote-helper" if metric == QUOTE_RATE else "metrics"
        exporters = self.exporters.get(component, {})
        fresh: dict[str, list[tuple[Exporter, float]]] = {}
        found: list[_Found] = []
        missing: dict[str, list[str]] = {}
        for pod in pods:
            if pod.node not in fresh:
                fresh[pod.node] = list(self._fresh(exporters.get(pod.node, ()), monotonic))
            if (one := _of_pod(pod, fresh[pod.node])) is not None:
                found.append(one)
            elif fresh[pod.node] and metric != QUOTE_RATE:
                continue  # it has not begun to use EPC
            elif pod.runs and (pod.requests or (pod.claims and pod.node in exporters)):
                # Pods of a lost node stay for as long as it is lost. A node that is not in `exporters` has no EPC: a
                # claim there is one of something else.
                missing.setdefault(pod.node, []).append(pod.name)
        why = {node: self._why(component, node, monotonic) for node in missing}
        return found, {why[node]: names for node, names in missing.items()}

    def _fresh(self, exporters: Iterable[Exporter], monotonic: float) -> Iterator[tuple[Exporter, float]]:
        for exporter in exporters:
            age = exporter.age(monotonic)
            if age is not None and age <= self._stale_after:
                yield exporter, age

    def _why(self, component: str, node: str, monotonic: float) -> str:
        """Why there are no fresh figures of a node."""
        exporters, name = self.exporters.get(component, {}).get(node, []), _NAMES[component]
        if not exporters:
            return f"no {name} runs on node {node}"
        exporter = exporters[0]
        age = exporter.age(monotonic)
        since = "never" if age is None else f"{age:.0f} s ago"
        reason = exporter.failure or ("old" if age is None or age > self._stale_after else "too few yet for a rate")
        return f"the {name} of node {node} ({exporter.address}) last gave figures {since}: {reason}"


def _value(request: MetricRequest, name: str, found: list[_Found], stamp: Callable[[float], str]) -> Value | None:
    """The value of one pod, or of several together; `stamp` gives the time of an age."""
    taken = stamp(found[0].age if len(found) == 1 else max(one.age for one in found))
    if request.metric == QUOTE_RATE:
        return Value(name, sum(one.what for one in found if isinstance(one.what, float)), taken, int(WINDOW))
    value = _EPC_METRICS[request.metric]([one.what for one in found if isinstance(one.what, Mapping)])
    return None if value is None else Value(name, value, taken)


def _of_pod(pod: ScaledPod, exporters: list[tuple[Exporter, float]]) -> _Found | None:
    """A pod's figures of its node's fresh exporters, which are all of one component; None where they have none.

    Of two exporters of EPC use the latest look counts; quotes of two helpers are added.
    """
    found: _Found | None = None
    for exporter, age in exporters:
        if exporter.epc is not None:
            use = exporter.epc.pods.get((pod.namespace, pod.name))
            if use is not None and (found is None or age < found.age):
                found = _Found(pod.name, use, age)
        elif exporter.quotes and (rate := exporter.quote_rate(pod.uid)) is not None:
            known = (found.what, found.age) if found is not None and isinstance(found.what, float) else (0.0, 0.0)
            found = _Found(pod.name, known[0] + rate, max(known[1], age))
    return found


def _no_fresh(missing: Mapping[str, list[str]]) -> str:
    count = sum(map(len, missing.values()))
    reasons = list(missing)
    more = f", and {len(reasons) - MAX_NAMED} more nodes" if len(reasons) > MAX_NAMED else ""
    return f"no fresh figures of {count} pods: {'; '.join(reasons[:MAX_NAMED])}{more}"


def _nothing(request: MetricRequest, pods: int) -> str:
    what = f"{request.resource} {request.namespace}/{request.name}"[:120]
    if not pods:
        return f"{what}: no pod of it runs on a node"
    if request.metric == QUOTE_RATE:
        return f"{what}: its {pods} pods are not counted by a quote helper yet"
    return f"{what}: none of its {pods} pods has {request.metric}: they request or use no EPC, or began a moment ago"
