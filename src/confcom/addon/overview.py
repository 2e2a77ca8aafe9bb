"""EPC and quotes per node and pod of a cluster: requests from the API, use from the metrics of the add-on's pods.

Any source may be missing. Its values are then None, and `missing` says why.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confcom.errors import ConfcomError
from confcom.protocols.custom_metrics import Sample, parse_samples
from confcom.protocols.epc import EpcNode, EpcPod

if TYPE_CHECKING:
    from confcom.cluster.nodes import ClusterEpc

EXPORTER, HELPER = "metrics", "quote-helper"
"""Components of the add-on that measure use."""
REQUESTED = "confcom_epc_requested_bytes"
MAPPED = "confcom_epc_mapped_bytes"
IN_USE = "confcom_epc_in_use_bytes"
OVER = "confcom_epc_over_limit"
NODE_MAPPED = "confcom_epc_node_mapped_bytes"
NODE_IN_USE = "confcom_epc_node_in_use_bytes"
NODE_SIZE = "confcom_epc_node_size_bytes"
NODE_REQUESTED = "confcom_epc_node_requested_bytes"
PODS_KNOWN = "confcom_epc_pods_known"
RECLAIM = "confcom_epc_reclaim_seconds_total"
QUOTES = "confcom_quote_helper_quotes_total"
ENCLAVE_QUOTES = "confcom_quote_helper_enclave_quotes_total"
ENCLAVE_LAST = "confcom_quote_helper_enclave_last_quote_timestamp_seconds"
TCB = "confcom_quote_helper_tcb_status"
SELF_TEST = "confcom_quote_helper_self_test_ok"
ITSELF = "the helper itself"
"""The peer of the helper's self-tests."""
_WANTED = frozenset(
    (REQUESTED, MAPPED, IN_USE, OVER, NODE_SIZE, NODE_MAPPED, NODE_IN_USE, NODE_REQUESTED, PODS_KNOWN, RECLAIM, QUOTES,
     ENCLAVE_QUOTES, ENCLAVE_LAST, TCB, SELF_TEST)
)  # fmt: skip
_ENCLAVE_LABELS = ("peer", "mr_enclave", "mr_signer", "isv_prod_id", "isv_svn", "debug", "signer_expected")
_COMPONENT = "app.kubernetes.io/component"
_AT_ONCE = 16
"""Pages of metrics that are fetched at a time."""
_SHOWN = 3
"""Failures that are named; beyond it only their number is given."""


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A node. Sizes in bytes, `quotes` since the helper started, `reclaim_seconds` since boot; None: unknown.

    `offered` is what applications may request, `free` the part of it that none requests. `tcb_status` of the platform
    and `self_test_ok` are what the quote helper reports.
    """

    name: str
    allocatable: int | None
    requested: int | None
    mapped: int | None = None
    in_use: int | None = None
    quotes: int | None = None
    reclaim_seconds: float | None = None
    offered: int | None = None
    free: int | None = None
    tcb_status: str | None = None
    self_test_ok: bool | None = None


@dataclass(frozen=True, slots=True)
class PodLine:
    """A pod that requests EPC, uses it, or got quotes. `over`: containers above their limit, and by what measure."""

    namespace: str
    name: str
    node: str
    requested: int
    mapped: int | None = None
    in_use: int | None = None
    quotes: int | None = None
    over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EnclaveLine:
    """An enclave with quotes from a node's helper since its start: identity in hex, empty if not counted separately.

    `namespace` is empty for peers that are no pod of the cluster: `name` is then what the helper calls them. `last` is
    the time of its last quote, in seconds of Unix time. `signer_expected` is None without a list of expected signers.
    """

    namespace: str
    name: str
    node: str
    mr_enclave: str
    mr_signer: str
    isv_prod_id: int | None
    isv_svn: int | None
    debug: bool
    signer_expected: bool | None
    quotes: int
    last: float | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """The lines of nodes, pods and enclaves, and what could not be read."""

    nodes: tuple[NodeLine, ...]
    pods: tuple[PodLine, ...]
    missing: tuple[str, ...] = ()
    enclaves: tuple[EnclaveLine, ...] = ()


@dataclass(slots=True)
class _Gathered:
    nodes: list[EpcNode] = field(default_factory=list)
    pods: list[EpcPod] = field(default_factory=list)
    exporters: dict[str, list[Sample]] = field(default_factory=dict)
    helpers: dict[str, list[Sample]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    listed: bool = False


async def overview(
    cluster: ClusterEpc, *, namespace: str | None = None, addon: str = "confcom-system", node: str = ""
) -> Overview:
    """Read the cluster. `namespace` limits the pods shown; `addon` is the add-on's namespace.

    With `node`, use and quotes of that node alone are read, instead of those of all nodes.

    `ConfcomError` only if neither nodes nor pods can be read.
    """
    gathered = _Gathered()
    addon_pods = await _ask_api(cluster, gathered, namespace, addon)
    asked = [pod for pod in addon_pods if not pod.finished and node in ("", pod.node)]
    await _ask_pods(cluster, gathered, asked)
    if EXPORTER not in {pod.labels.get(_COMPONENT) for pod in addon_pods}:
        gathered.missing.append(f"no {EXPORTER} pods in {addon}: what is mapped is not known (addon update --metrics)")
    pods = [pod for pod in gathered.pods if not pod.finished]
    use = _Use(gathered.exporters, gathered.helpers)
    # A node's requests are those of the whole cluster's pods.
    requested = _requested(pods) if namespace is None and gathered.listed else None
    applications = _requested(pod for pod in pods if pod.labels.get(_COMPONENT) != HELPER or pod.namespace != addon)
    known = {one.name: one for one in gathered.nodes}
    names = (
        {name for name, one in known.items() if one.allocatable is not None}
        | gathered.exporters.keys()
        | gathered.helpers.keys()
    )
    nodes = [
        use.node(
            known.get(name, EpcNode(name)),
            *((None, None) if requested is None else (requested[name], applications[name])),
        )
        for name in sorted(names)
    ]
    lines = [use.pod(pod) for pod in pods]
    enclaves = use.enclaves(gathered.pods, others=namespace is None)
    return Overview(
        tuple(nodes),
        tuple(sorted((line for line in lines if _shown(line)), key=lambda line: (line.namespace, line.name))),
        tuple(gathered.missing),
        tuple(sorted(enclaves, key=lambda line: (line.namespace, line.name, line.mr_enclave, line.node))),
    )


class _Use:
    """Sums of samples per pod and node."""

    def __init__(self, exporters: dict[str, list[Sample]], helpers: dict[str, list[Sample]]) -> None:
        self._helpers = helpers
        self._nodes = {node: {one.name: one.value for one in samples} for node, samples in exporters.items()}
        self._sizes: Counter[tuple[str, str, str, str]] = Counter()
        self._node_sizes: Counter[str] = Counter()
        self._over: dict[tuple[str, str, str], list[str]] = {}
        self._quotes: Counter[str] = Counter()
        for node, samples in exporters.items():
            for one in samples:
                self._add(node, one)
        for samples in helpers.values():
            for one in samples:
                if one.name == QUOTES:
                    self._quotes[one.labels.get("peer", "")] += int(one.value)

    def _add(self, node: str, one: Sample) -> None:
        place = (node, one.labels.get("namespace", ""), one.labels.get("pod", ""))
        if one.name in (REQUESTED, MAPPED, IN_USE):
            self._sizes[one.name, *place] += int(one.value)
        elif one.name == OVER and one.value:
            why = f"{one.labels.get('container', '')} {one.labels.get('kind', '')}"
            self._over.setdefault(place, []).append(why)
        elif one.name == NODE_SIZE:
            self._node_sizes[node] += int(one.value)

    def pod(self, pod: EpcPod) -> PodLine:
        place = (pod.node, pod.namespace, pod.name)
        seen = bool(self._nodes.get(pod.node, {}).get(PODS_KNOWN))
        # Only the exporter knows the EPC of a pod's claims.
        requested = max(pod.requested, self._sizes[REQUESTED, *place])
        return PodLine(
            *(pod.namespace, pod.name, pod.node, requested),
            mapped=self._sizes[MAPPED, *place] if seen else None,
            in_use=self._sizes.get((IN_USE, *place)),
            quotes=self._quotes[f"pod {pod.uid}"] if pod.node in self._helpers else None,
            over=tuple(self._over.get(place, ())),
        )

    def enclaves(self, pods: Iterable[EpcPod], *, others: bool) -> list[EnclaveLine]:
        """What the helpers have seen of these pods, and with `others` of all their peers."""
        known = {f"pod {pod.uid}": pod for pod in pods}
        quotes: Counter[tuple[str, ...]] = Counter()
        last: dict[tuple[str, ...], float] = {}
        for node, samples in self._helpers.items():
            for one in samples:
                # A node has two helpers while one is replaced.
                key = (node, *(one.labels.get(name, "") for name in _ENCLAVE_LABELS))
                if one.name == ENCLAVE_QUOTES:
                    quotes[key] += int(one.value)
                elif one.name == ENCLAVE_LAST:
                    last[key] = max(one.value, last.get(key, 0.0))
        return [
            _enclave(key, known.get(key[1]), count, last.get(key))
            for key, count in quotes.items()
            if others or key[1] in known
        ]

    def node(self, node: EpcNode, requested: int | None, applications: int | None) -> NodeLine:
        """The line of a node; `applications` is what `requested` is without the quote helper's part."""
        name, allocatable = node.name, node.allocatable
        offered = None if allocatable is None else allocatable - node.helper
        free = None if offered is None or applications is None else max(0, offered - applications)
        found = self._nodes.get(name, {})
        quotes = self._helpers.get(name)
        reported = _whole(found.get(NODE_REQUESTED))
        if reported is not None and reported > (requested or 0):
            # The node's status has the quote helper's EPC, but not what is published by claims (DRA).
            allocatable = max(allocatable or 0, self._node_sizes[name]) or None
            if not offered:  # else the exporter's figure is of some seconds ago
                offered = free = None
        known = [size for size in (requested, reported) if size is not None]
        return NodeLine(
            *(name, allocatable, max(known, default=None)),
            mapped=_whole(found.get(NODE_MAPPED)),
            in_use=_whole(found.get(NODE_IN_USE)),
            quotes=None if quotes is None else sum(_for_others(one) for one in quotes),
            reclaim_seconds=found.get(RECLAIM),
            offered=offered,
            free=free,
            tcb_status=next((one.labels.get("status") for one in quotes or () if one.name == TCB and one.value), None),
            # While one is replaced there are two: one that has not begun to serve has passed no test.
            self_test_ok=max((bool(one.value) for one in quotes or () if one.name == SELF_TEST), default=None),
        )


async def _ask_api(cluster: ClusterEpc, gathered: _Gathered, namespace: str | None, addon: str) -> list[EpcPod]:
    try:
        gathered.nodes = await cluster.nodes()
    except ConfcomError as error:
        gathered.missing.append(error.message)
    try:
        gathered.pods = await cluster.pods(namespace)
        gathered.listed = True
    except ConfcomError as error:
        if gathered.missing:
            raise
        gathered.missing.append(error.message)
    if namespace is None and gathered.listed:
        return [pod for pod in gathered.pods if pod.namespace == addon]
    try:
        return await cluster.pods(addon, {"app.kubernetes.io/part-of": "confcom"})
    except ConfcomError as error:
        gathered.missing.append(error.message)
        return []


async def _ask_pods(cluster: ClusterEpc, gathered: _Gathered, pods: list[EpcPod]) -> None:
    turn = asyncio.Semaphore(_AT_ONCE)
    failures: list[str] = []

    async def ask(pod: EpcPod, target: dict[str, list[list[Sample]]]) -> None:
        async with turn:
            try:
                samples = parse_samples(await cluster.metrics(pod), _WANTED)
            except ConfcomError as error:
                failures.append(error.message)
                return
        target.setdefault(pod.node, []).append([one for one in samples if math.isfinite(one.value)])

    targets: dict[str, dict[str, list[list[Sample]]]] = {EXPORTER: {}, HELPER: {}}
    await asyncio.gather(
        *(ask(pod, targets[part]) for pod in pods if (part := pod.labels.get(_COMPONENT, "")) in targets)
    )
    # While a pod is replaced, its node has two: both exporters measure the same, each helper counts its own quotes.
    gathered.exporters = {node: pages[0] for node, pages in targets[EXPORTER].items()}
    gathered.helpers = {node: [one for page in pages for one in page] for node, pages in targets[HELPER].items()}
    for node, samples in gathered.exporters.items():
        if not any(one.name == PODS_KNOWN and one.value for one in samples):
            failures.append(f"the exporter of node {node} does not know its pods: see its log and /readyz")
    gathered.missing += failures[:_SHOWN]
    if len(failures) > _SHOWN:
        gathered.missing.append(f"and {len(failures) - _SHOWN} more like these")


def _small(text: str) -> int | None:
    """A number of 16 bits in a label; None for any other text, which a node can write."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


def _enclave(key: tuple[str, ...], pod: EpcPod | None, quotes: int, last: float | None) -> EnclaveLine:
    node, peer, mr_enclave, mr_signer, product, svn, debug, expected = key
    return EnclaveLine(
        *("" if pod is None else pod.namespace, peer if pod is None else pod.name, node, mr_enclave, mr_signer),
        isv_prod_id=_small(product),
        isv_svn=_small(svn),
        debug=debug == "true",
        signer_expected=expected == "true" if expected else None,
        quotes=quotes,
        last=last,
    )


def _for_others(one: Sample) -> int:
    """Quotes that a sample counts, without the helper's self-tests."""
    return int(one.value) if one.name == QUOTES and one.labels.get("peer") != ITSELF else 0


def _requested(pods: Iterable[EpcPod]) -> Counter[str]:
    found: Counter[str] = Counter()
    for pod in pods:
        found[pod.node] += pod.requested
    return found


def _shown(line: PodLine) -> bool:
    return bool(line.requested or line.mapped or line.in_use or line.quotes or line.over)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def age(seconds: float) -> str:
    """A duration in its largest unit, as kubectl shows it: `12s`, `3m`, `5h`, `2d`."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
