"""The ResourceSlices and claims of one node's DRA driver in the Kubernetes API.

A client lasts as long as one watch, because the token of a service account is replaced every hour and is read when the
client is made. Only slices of the one node and driver are watched. The API refuses writes to those of other nodes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from lightkube import AsyncClient
from lightkube.resources.core_v1 import Node

from confcom.cluster.client import KNOWN, cluster_errors, list_and_watch, missing_ok, open_client
from confcom.cluster.objects import CLAIM_KIND, RESOURCE_SLICE_KIND
from confcom.errors import ClusterError

FIELD_MANAGER = "confcom-device-plugin"
_ADVICE = (
    "This needs Kubernetes 1.36 or later. The plugin's service account needs get on nodes and resourceclaims, and "
    "list, watch, create, update and delete on resourceslices."
)
_SLICE = RESOURCE_SLICE_KIND.resource


class KubeResourceSlices:
    """One node's slices of one driver; `kubeconfig` as for `KubeNode`."""

    def __init__(self, node: str, driver: str, *, kubeconfig: str | None = None) -> None:
        self.node = node
        self._fields = {"spec.nodeName": node, "spec.driver": driver}
        self._kubeconfig = kubeconfig
        self._client: AsyncClient | None = None

    async def watch(self) -> AsyncGenerator[Mapping[str, Mapping[str, Any]], None]:
        """All slices by name, as JSON: at once, and again after each change."""
        await self.close()
        self._client = client = open_client(self._kubeconfig, field_manager=FIELD_MANAGER)
        try:
            with cluster_errors(f"cannot watch the resource slices of node {self.node}", advice=_ADVICE):
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
        with cluster_errors(f"cannot read node {self.node}", advice=_ADVICE):
            node = await self._open().get(Node, self.node)
        return (node.metadata and node.metadata.uid) or ""

    async def write(self, wanted: Mapping[str, Any], present: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Create a slice, or replace `present`; returns the written object."""
        metadata = dict(wanted["metadata"])
        if present is not None:
            metadata["resourceVersion"] = present["metadata"]["resourceVersion"]
        draft: Any = _SLICE.from_dict({**wanted, "metadata": metadata})
        with cluster_errors(f"cannot write the resource slice {metadata['name']}", advice=_ADVICE):
            client = self._open()
            written = await (client.create(draft) if present is None else client.replace(draft))
        return dict(written)

    async def delete(self, name: str) -> None:
        """Delete a slice; it need not exist."""
        with missing_ok(), cluster_errors(f"cannot delete the resource slice {name}", advice=_ADVICE):
            await self._open().delete(_SLICE, name)

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _open(self) -> AsyncClient:
        if self._client is None:
            # Between two watches. The next one yields the slices, from which the caller writes again.
            raise ClusterError(f"no connection for node {self.node} now")
        return self._client


class KubeResourceClaims:
    """Reads claims one at a time, each with a new client: reads are rare and tokens short-lived."""

    def __init__(self, *, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig

    async def get(self, namespace: str, name: str) -> Mapping[str, Any]:
        """A claim as JSON."""
        async with open_client(self._kubeconfig, field_manager=FIELD_MANAGER) as client:
            with cluster_errors(f"cannot read the claim {namespace}/{name}", advice=_ADVICE):
                return dict(await client.get(CLAIM_KIND.resource, name, namespace=namespace))
