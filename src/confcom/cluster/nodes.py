"""Nodes and their pods in the Kubernetes API: the node of a daemon, all of them as they change, EPC of a whole cluster,
events about pods (API group events.k8s.io).

A client lasts as long as one watch, because the token of a service account is replaced every hour and is read when the
client is made. Only `nodes/status` and ResourceSlices of the one node are ever written: the API refuses other nodes'.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.core.generic_client import BasicRequest
from lightkube.models.core_v1 import ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Node
from lightkube.resources.events_v1 import Event
from lightkube.types import PatchType

from confcom.cluster.client import (
    CLAIM_KIND,
    KNOWN,
    NODE_KIND,
    POD_KIND,
    RESOURCE_SLICE_KIND,
    SERVER_TIMEOUT,
    ClusterObjects,
    answered,
    cluster_errors,
    list_and_watch,
    missing_ok,
    open_client,
)
from confcom.errors import ClusterError, FormatError
from confcom.protocols.custom_metrics import MAX_PAGE, ScaledPod, parse_scaled_pod
from confcom.protocols.epc import (
    CANONICAL,
    EpcNode,
    EpcPod,
    NodeStatus,
    claimed_epc,
    parse_node,
    parse_pod,
    requested_epc,
)

FIELD_MANAGER = "confcom-device-plugin"
_ADVICE = "The plugin's service account needs list and watch on nodes, patch on nodes/status, and its own node's name."


class _WatchedNode:
    """One node, with a client for each watch; `kubeconfig` as for `open_client`."""

    def __init__(self, name: str, *, kubeconfig: str | None = None) -> None:
        self.name = name
        self._kubeconfig = kubeconfig
        self._client: AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _begin(self) -> AsyncClient:
        """The client of a new watch."""
        await self.close()
        self._client = open_client(self._kubeconfig, field_manager=FIELD_MANAGER)
        return self._client

    def _open(self) -> AsyncClient:
        if self._client is None:
            # Between two watches. The next one yields the state, from which the caller writes again.
            raise ClusterError(f"no connection for node {self.name} now")
        return self._client


class KubeNode(_WatchedNode):
    """The node's object."""

    async def watch(self) -> AsyncGenerator[NodeStatus, None]:
        """The present state, then each new one, until the watch or the node ends."""
        client = await self._begin()
        seen: Any = client.watch(Node, fields={"metadata.name": self.name}, server_timeout=SERVER_TIMEOUT)
        try:
            with cluster_errors(f"cannot watch node {self.name}", advice=_ADVICE):
                async with aclosing(seen):
                    async for kind, node in seen:
                        if kind == "DELETED":
                            return
                        yield _status(node)
        finally:
            await self.close()

    async def patch(self, patch: Mapping[str, object]) -> None:
        """A merge patch of the status subresource, while `watch` runs."""
        client = self._open()
        with cluster_errors(f"cannot write the status of node {self.name}", advice=_ADVICE):
            await client.patch(Node.Status, self.name, dict(patch), patch_type=PatchType.MERGE)


def _status(node: Node) -> NodeStatus:
    status, metadata = node.status, node.metadata
    return NodeStatus(
        capacity=dict((status and status.capacity) or {}),
        allocatable=dict((status and status.allocatable) or {}),
        labels=dict((metadata and metadata.labels) or {}),
        annotations=dict((metadata and metadata.annotations) or {}),
        boot_id=(status and status.nodeInfo and status.nodeInfo.bootID) or "",
    )


_SLICES_ADVICE = (
    "This needs Kubernetes 1.36 or later. The plugin's service account needs get on nodes and resourceclaims, and "
    "list, watch, create, update and delete on resourceslices."
)
_SLICE = RESOURCE_SLICE_KIND.resource


class KubeResourceSlices(_WatchedNode):
    """One node's slices of one driver."""

    def __init__(self, node: str, driver: str, *, kubeconfig: str | None = None) -> None:
        super().__init__(node, kubeconfig=kubeconfig)
        self._fields = {"spec.nodeName": node, "spec.driver": driver}

    async def watch(self) -> AsyncGenerator[Mapping[str, Mapping[str, Any]], None]:
        """All slices by name, as JSON: at once, and again after each change."""
        client = await self._begin()
        try:
            with cluster_errors(f"cannot watch the resource slices of node {self.name}", advice=_SLICES_ADVICE):
                present: dict[str, Mapping[str, Any]] = {}
                known = False
                async with aclosing(list_and_watch(client, _SLICE, fields=dict(self._fields))) as changes:
                    async for kind, found in changes:
                        known = known or kind == KNOWN
                        if kind != KNOWN:
                            name = found["metadata"]["name"]
                            present = {other: one for other, one in present.items() if other != name}
                            if kind != "DELETED":
                                present[name] = dict(found)
                        if known:
                            yield present
        finally:
            await self.close()

    async def owner(self) -> str:
        """The UID of the Node object."""
        with cluster_errors(f"cannot read node {self.name}", advice=_SLICES_ADVICE):
            node = await self._open().get(Node, self.name)
        return (node.metadata and node.metadata.uid) or ""

    async def write(self, wanted: Mapping[str, Any], present: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Create a slice, or replace `present`; returns the written object."""
        metadata = dict(wanted["metadata"])
        if present is not None:
            metadata["resourceVersion"] = present["metadata"]["resourceVersion"]
        draft: Any = _SLICE.from_dict({**wanted, "metadata": metadata})
        with cluster_errors(f"cannot write the resource slice {metadata['name']}", advice=_SLICES_ADVICE):
            client = self._open()
            written = await (client.create(draft) if present is None else client.replace(draft))
        return dict(written)

    async def delete(self, name: str) -> None:
        """Delete a slice; it need not exist."""
        with missing_ok(), cluster_errors(f"cannot delete the resource slice {name}", advice=_SLICES_ADVICE):
            await self._open().delete(_SLICE, name)


CLAIM_WITHIN = 10.0
"""Seconds for reading a claim. A kubelet gives all claims of a pod 45 s (Kubernetes 1.36, `defaultClientCallTimeout` of
its DRA plugins), and then shows no reason."""


class KubeResourceClaims:
    """Reads claims one at a time, each with a new client: reads are rare and tokens short-lived."""

    def __init__(self, *, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig

    async def get(self, namespace: str, name: str) -> Mapping[str, Any]:
        """A claim as JSON."""
        what = f"cannot read the claim {namespace}/{name}"
        try:
            async with (
                asyncio.timeout(CLAIM_WITHIN),
                open_client(self._kubeconfig, field_manager=FIELD_MANAGER) as client,
            ):
                with cluster_errors(what, advice=_SLICES_ADVICE):
                    return dict(await client.get(CLAIM_KIND.resource, name, namespace=namespace))
        except TimeoutError as error:
            raise ClusterError(f"{what}: no answer within {CLAIM_WITHIN:g} s") from error


CORDON = "node.kubernetes.io/unschedulable"
"""Taint of a cordoned node; a drain cordons first."""
_STATUS_ADVICE = "The service account needs list and watch on nodes."


class NodeState(NamedTuple):
    """A node's EPC in bytes, 0 if it publishes none, and whether it accepts pods.

    `cordoned` is None for a node with other taints: they keep pods without tolerations away in any case.
    """

    epc: int
    cordoned: bool | None


def drained(nodes: Iterable[NodeState]) -> bool:
    """Whether every node that could run pods is cordoned."""
    states = {node.cordoned for node in nodes}
    return True in states and False not in states


async def watch_nodes(kubeconfig: str | None) -> AsyncIterator[Mapping[str, NodeState]]:
    """Every node by name, at once and after each change, until the watch ends.

    EPC is read from the capacity: allocatable EPC is 0 while a device plugin restarts.
    """
    found: dict[str, NodeState] = {}
    client: Any
    async with open_client(kubeconfig, field_manager="confcom-webhook") as client:
        with cluster_errors("cannot watch the nodes", advice=_STATUS_ADVICE):
            known = False
            async with aclosing(list_and_watch(client, Node, chunk=LARGE_CHUNK)) as changes:
                async for kind, node in changes:
                    if kind == KNOWN:
                        known = True
                        yield dict(found)
                        continue
                    before = found.pop(node.metadata.name, None)
                    if kind != "DELETED":
                        found[node.metadata.name] = _state(node)
                    if known and found.get(node.metadata.name) != before:
                        yield dict(found)


def _state(node: Any) -> NodeState:  # noqa: ANN401 - lightkube's model of a node
    status, spec = node.status, node.spec
    epc = requested_epc((status.capacity if status is not None else None) or {}) or 0
    taints = (spec.taints if spec is not None else None) or []
    keys = {taint.key for taint in taints if taint.effect in ("NoSchedule", "NoExecute")}
    if keys - {CORDON}:
        return NodeState(epc, None)
    return NodeState(epc, bool(keys or (spec is not None and spec.unschedulable)))


LIFE = 600.0
"""Seconds until a new client lists everything again: a service account's token lasts an hour."""
CHUNK = 200
"""Pods per answer, where a daemon follows them."""
LARGE_CHUNK = 500
"""Objects per answer, for the webhook's nodes and for `confcom top` and `why`."""

MAX_CLAIMS = 1024
"""Most claims of one node that are read."""

_PODS_ADVICE = "The service account needs list and watch on pods, get on nodes, and get on resourceclaims."


_Pod = TypeVar("_Pod", bound=EpcPod | ScaledPod)


class Pods(Generic[_Pod]):
    """Pods by uid, followed by a watch; `known` is true after the first complete list.

    `parse` reads a Pod object; one for which it raises `FormatError` is passed over. `fields` select pods.
    """

    def __init__(
        self, parse: Callable[[Any], _Pod], *, kubeconfig: str | None, manager: str, fields: Mapping[str, str]
    ) -> None:
        self.pods: dict[str, _Pod] = {}
        self.known = False
        self._parse = parse
        self._kubeconfig = kubeconfig
        self._manager = manager
        self._fields = dict(fields) or None

    async def follow(self) -> None:
        """List, then watch, for `LIFE` at most; `ClusterError` on failure."""
        with suppress(TimeoutError):
            async with open_client(self._kubeconfig, field_manager=self._manager) as client, asyncio.timeout(LIFE):
                with cluster_errors("cannot follow the pods", advice=_PODS_ADVICE):
                    await self._follow(client)

    async def _follow(self, client: AsyncClient) -> None:
        found: dict[str, _Pod] = {}
        listing = list_and_watch(client, POD_KIND.resource, chunk=CHUNK, namespace="*", fields=self._fields)
        async with aclosing(listing) as changes:
            async for kind, document in changes:
                if kind == KNOWN:
                    self.pods, self.known = found, True
                elif (pod := self._read(document)) is not None:
                    if kind == "DELETED":
                        found.pop(pod.uid, None)
                    else:
                        found[pod.uid] = pod

    def _read(self, document: Any) -> _Pod | None:  # noqa: ANN401 - JSON
        try:
            return self._parse(dict(document))
        except FormatError:
            return None  # a pod that cannot be read must not stop the others


def scaled_pods(kubeconfig: str | None) -> Pods[ScaledPod]:
    """Every pod of the cluster."""
    return Pods(parse_scaled_pod, kubeconfig=kubeconfig, manager="confcom-metrics-api", fields={})


class NodePods(Pods[EpcPod]):
    """A node and its pods.

    `claims`: bytes of EPC of the pods' ResourceClaims, by namespace and name, as far as they could be read.
    """

    def __init__(self, node: str, *, kubeconfig: str | None = None, resource: str = CANONICAL) -> None:
        own = {"spec.nodeName": node}
        super().__init__(parse_pod, kubeconfig=kubeconfig, manager="confcom-metrics", fields=own)
        self.node = EpcNode(node)
        self.claims: Mapping[tuple[str, str], int] = {}
        self._users: Mapping[tuple[str, str], set[str]] = {}
        self._resource = resource

    async def refresh(self) -> None:
        """Read the node and the claims of new pods; `ClusterError` on failure."""
        client: Any
        async with open_client(self._kubeconfig, field_manager="confcom-metrics") as client:
            with cluster_errors(f"cannot read node {self.node.name}", advice=_PODS_ADVICE):
                found = await client.get(Node, self.node.name)
            status = {"allocatable": found.status and found.status.allocatable}
            self.node = parse_node({"metadata": {"name": self.node.name}, "status": status}, self._resource)
            await self._read_claims(client)

    async def _read_claims(self, client: Any) -> None:  # noqa: ANN401 - lightkube's signatures know its own models only
        users: dict[tuple[str, str], set[str]] = {}
        for pod in self.pods.values():
            if not pod.finished:  # one that has finished holds nothing
                for name in (name for one in pod.containers for name in one.claims):
                    users.setdefault((pod.namespace, name), set()).add(pod.uid)
        found = {}
        for claim, pods in islice(users.items(), MAX_CLAIMS):
            # A claim stays while a pod uses it; after that, one of its name may be another one.
            if (size := self.claims.get(claim)) and pods & self._users[claim]:
                found[claim] = size
                continue
            namespace, name = claim
            with missing_ok(), cluster_errors(f"cannot read the claim {namespace}/{name}", advice=_PODS_ADVICE):
                document = await client.get(CLAIM_KIND.resource, name, namespace=namespace)
                found[claim] = claimed_epc(dict(document))
        self.claims, self._users = found, users


# The whole cluster, for `confcom top` and `confcom why`.


class _Answer(msgspec.Struct):
    message: str = ""


_ANSWER = msgspec.json.Decoder(_Answer)


class ClusterEpc(ClusterObjects):
    """One cluster, with the rights of the kubeconfig's user: beside its objects the EPC of nodes and pods."""

    async def nodes(self) -> list[EpcNode]:
        with cluster_errors("cannot list the nodes", advice="Ask for the right to list nodes."):
            listed = self._client.list(NODE_KIND.resource, chunk_size=LARGE_CHUNK)
            return [parse_node(dict(document)) async for document in listed]

    async def pods(self, namespace: str | None = None, labels: dict[str, str] | None = None) -> list[EpcPod]:
        """Pods of a namespace, or of all; malformed ones are skipped."""
        found = []
        with cluster_errors("cannot list the pods", advice="Ask for the right to list pods."):
            listed = self._client.list(
                POD_KIND.resource, namespace=namespace or "*", labels=labels, chunk_size=LARGE_CHUNK
            )
            async for document in listed:
                try:
                    found.append(parse_pod(dict(document)))
                except FormatError:
                    continue
        return found

    async def metrics(self, pod: EpcPod) -> str:
        """The metrics page of a pod, at the first port that it declares."""
        path = f"api/v1/namespaces/{pod.namespace}/pods/{pod.name}/proxy/metrics"
        advice = f"Ask for the right to get pods/proxy in namespace {pod.namespace}."
        with cluster_errors(f"cannot read the metrics of pod {pod}", advice=advice):
            # lightkube has no proxy requests, but its inner client sends any path.
            inner = self._client._client
            response = await inner.send(inner.build_adapter_request(BasicRequest("GET", path)), stream=True)
            try:
                page = await _read(response, f"the metrics of pod {pod}")
            finally:
                await response.aclose()
        if not response.is_success:
            message = f"cannot read the metrics of pod {pod}: {_reason(page, response.status_code)}"
            raise answered(message, response.status_code, advice)
        return page.decode("utf-8", "replace")


async def _read(response: Any, what: str) -> bytes:  # noqa: ANN401 - of lightkube's HTTP client
    page = bytearray()
    async for piece in response.aiter_bytes():
        page += piece
        if len(page) > MAX_PAGE:
            raise ClusterError(f"{what} are over {MAX_PAGE} bytes")
    return bytes(page)


def _reason(page: bytes, status: int) -> str:
    """The message of the API server; if the pod answered, its HTTP status."""
    try:
        return _ANSWER.decode(page).message or f"HTTP {status}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"HTTP {status}"


MAX_NOTE = 1024
"""Bytes; the API server refuses more."""
_EVENTS_ADVICE = "The service account needs create, get and patch on events in the group events.k8s.io."


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event about a container, or about the pod where none is named.

    `key` distinguishes events with the same reason in one pod.
    """

    namespace: str
    pod: str
    uid: str
    container: str
    reason: str
    note: str
    action: str
    key: str = ""

    @property
    def name(self) -> str:
        """Equal for a repeated event, so that it is counted on the existing one."""
        parts = "\0".join((self.uid, self.container, self.reason, self.key))
        return f"{self.pod[:200].rstrip('.-')}.{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


async def report_event(
    client: AsyncClient, event: PodEvent, now: datetime, *, controller: str, instance: str
) -> Literal["created", "counted"]:
    """Create an event; if the API server still has it, increase its count instead."""
    with cluster_errors(f"cannot report {event.reason} of {event.namespace}/{event.pod}", advice=_EVENTS_ADVICE):
        try:
            await client.create(_document(event, _micro(now), controller, instance))
        except ApiError as error:
            if error.status.code != 409:
                raise
            await _count(client, event, _micro(now))
            return "counted"
    return "created"


async def _count(client: Any, event: PodEvent, now: datetime) -> None:  # noqa: ANN401 - lightkube's overloads
    present = await client.get(Event, event.name, namespace=event.namespace)
    count = present.series.count if present.series is not None else 1
    patch = {"series": {"count": count + 1, "lastObservedTime": now.isoformat(timespec="microseconds")}}
    await client.patch(Event, event.name, patch, namespace=event.namespace, patch_type=PatchType.MERGE)


def _document(event: PodEvent, now: datetime, controller: str, instance: str) -> Event:
    return Event(
        eventTime=now,
        metadata=ObjectMeta(name=event.name, namespace=event.namespace),
        type="Warning",
        reason=event.reason,
        action=event.action,
        note=event.note.encode()[:MAX_NOTE].decode(errors="ignore"),
        regarding=ObjectReference(
            apiVersion="v1",
            kind="Pod",
            namespace=event.namespace,
            name=event.pod,
            uid=event.uid,
            fieldPath=f"spec.containers{{{event.container}}}" if event.container else None,
        ),
        reportingController=controller,
        reportingInstance=instance,
    )


def _micro(now: datetime) -> datetime:
    # The API requires six digits of a second; a full second would be written with none.
    return now if now.microsecond else now.replace(microsecond=1)
