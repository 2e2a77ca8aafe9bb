"""The Node object of this node in the Kubernetes API, as `devices.interface.NodeStatusPublisher` wants it.

A client lasts as long as one watch, because the token of a service account is replaced every hour and is read when the
client is made. Only `nodes/status` of the one node is ever written.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from lightkube import AsyncClient
from lightkube.resources.core_v1 import Node
from lightkube.types import PatchType

from confcom.cluster.client import cluster_errors, open_client
from confcom.cluster.node_values import NodeStatus
from confcom.errors import ClusterError

FIELD_MANAGER = "confcom-device-plugin"
SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch."""
_ADVICE = "The plugin's service account needs list and watch on nodes, patch on nodes/status, and its own node's name."


class KubeNode:
    """One node; `kubeconfig` None means in-cluster credentials, else $KUBECONFIG or the user's file."""

    def __init__(self, name: str, *, kubeconfig: str | None = None) -> None:
        self.name = name
        self._kubeconfig = kubeconfig
        self._client: AsyncClient | None = None

    async def watch(self) -> AsyncGenerator[NodeStatus, None]:
        """The present state first, then every further one; a node that is deleted ends it."""
        await self.close()
        self._client = open_client(self._kubeconfig, field_manager=FIELD_MANAGER)
        seen: Any = self._client.watch(Node, fields={"metadata.name": self.name}, server_timeout=SERVER_TIMEOUT)
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
        if self._client is None:
            # Between two watches; the next one shows what is to be patched again.
            raise ClusterError(f"no connection for node {self.name} now")
        with cluster_errors(f"cannot write the status of node {self.name}", advice=_ADVICE):
            await self._client.patch(Node.Status, self.name, dict(patch), patch_type=PatchType.MERGE)

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


def _status(node: Node) -> NodeStatus:
    status, metadata = node.status, node.metadata
    return NodeStatus(
        capacity=dict((status and status.capacity) or {}),
        allocatable=dict((status and status.allocatable) or {}),
        labels=dict((metadata and metadata.labels) or {}),
        annotations=dict((metadata and metadata.annotations) or {}),
        boot_id=(status and status.nodeInfo and status.nodeInfo.bootID) or "",
    )
