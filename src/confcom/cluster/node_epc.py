"""How much EPC the nodes of a cluster have, and which take pods, followed as it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from lightkube.resources.core_v1 import Node

from confcom.cluster.client import cluster_errors, open_client
from confcom.protocols.epc import requested_epc

SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch; then all nodes are listed anew."""
CORDON = "node.kubernetes.io/unschedulable"
"""The taint of a node that was cordoned, which a drain does first."""
_ADVICE = "The service account needs list and watch on nodes."


class NodeState(NamedTuple):
    """Of a node: bytes of EPC, 0 where it publishes none, and whether it takes pods.

    `cordoned` is None for a node that has taints, which keep pods of no tolerations away whatever is done with it.
    """

    epc: int
    cordoned: bool | None


def drained(nodes: Iterable[NodeState]) -> bool:
    """Whether every node on which pods could run is being drained."""
    states = {node.cordoned for node in nodes}
    return True in states and False not in states


async def watch_nodes(kubeconfig: str | None) -> AsyncIterator[Mapping[str, NodeState]]:
    """Every node by name: at once, after each change, until the watch ends.

    Capacity counts, because what is allocatable is 0 for the moment in which a device plugin restarts.
    """
    found: dict[str, NodeState] = {}
    client: Any = open_client(kubeconfig, field_manager="confcom-webhook")
    try:
        with cluster_errors("cannot watch the nodes", advice=_ADVICE):
            listed = client.list(Node, chunk_size=500)
            async for node in listed:
                found[node.metadata.name] = _state(node)
            yield dict(found)
            seen = client.watch(Node, server_timeout=SERVER_TIMEOUT, resource_version=listed.resourceVersion)
            async with aclosing(seen):
                async for kind, node in seen:
                    before = found.pop(node.metadata.name, None)
                    if kind != "DELETED":
                        found[node.metadata.name] = _state(node)
                    if found.get(node.metadata.name) != before:
                        yield dict(found)
    finally:
        await client.close()


def _state(node: Any) -> NodeState:  # noqa: ANN401 - lightkube's model of a node
    status, spec = node.status, node.spec
    epc = requested_epc((status.capacity if status is not None else None) or {}) or 0
    taints = (spec.taints if spec is not None else None) or []
    keys = {taint.key for taint in taints if taint.effect in ("NoSchedule", "NoExecute")}
    if keys - {CORDON}:
        return NodeState(epc, None)
    return NodeState(epc, bool(keys or (spec is not None and spec.unschedulable)))
