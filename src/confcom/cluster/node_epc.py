"""How much EPC the nodes of a cluster have, followed as it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from lightkube.resources.core_v1 import Node

from confcom.cluster.client import cluster_errors, open_client
from confcom.protocols.epc_requests import requested_epc

SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch; then all nodes are listed anew."""
_ADVICE = "The service account needs list and watch on nodes."


async def watch_node_epc(kubeconfig: str | None) -> AsyncIterator[Mapping[str, int]]:
    """Bytes of EPC by the name of each node that publishes some: at once, after each change, until the watch ends.

    Capacity counts, because what is allocatable is 0 for the moment in which a device plugin restarts.
    """
    found: dict[str, int] = {}
    client: Any = open_client(kubeconfig, field_manager="confcom-webhook")
    try:
        with cluster_errors("cannot watch the nodes", advice=_ADVICE):
            listed = client.list(Node, chunk_size=500)
            async for node in listed:
                _note(found, node)
            yield dict(found)
            seen = client.watch(Node, server_timeout=SERVER_TIMEOUT, resource_version=listed.resourceVersion)
            async with aclosing(seen):
                async for kind, node in seen:
                    before = found.get(node.metadata.name)
                    found.pop(node.metadata.name, None)
                    if kind != "DELETED":
                        _note(found, node)
                    if found.get(node.metadata.name) != before:
                        yield dict(found)
    finally:
        await client.close()


def _note(found: dict[str, int], node: Any) -> None:  # noqa: ANN401 - lightkube's model of a node
    status = node.status
    epc = requested_epc((status.capacity if status is not None else None) or {})
    if epc:
        found[node.metadata.name] = epc
