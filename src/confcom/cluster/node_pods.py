"""The pods of one node and what the node may hand out, kept up to date by a watch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from lightkube.core.resource import ApiInfo, ResourceDef
from lightkube.generic_resource import GenericNamespacedResource
from lightkube.resources.core_v1 import Node

from confcom.cluster.client import cluster_errors, open_client
from confcom.errors import FormatError
from confcom.protocols.epc import CANONICAL, EpcNode, EpcPod, parse_claim, parse_node, parse_pod

SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch."""
LIFE = 600.0
"""Seconds after which everything is listed anew with a new client: a service account's token lasts an hour."""
CHUNK = 200
"""Pods per answer."""

MAX_CLAIMS = 1024
"""Claims of pods of one node whose amounts are remembered."""

_ADVICE = "The service account needs list and watch on pods, get on nodes, and get on resourceclaims."


class JsonPod(GenericNamespacedResource):
    """A pod as plain JSON: there is no need to make objects of all that it holds."""

    _api_info = ApiInfo(
        resource=ResourceDef("", "v1", "Pod"),
        plural="pods",
        verbs=["get", "list", "watch", "global_list", "global_watch"],
    )


class JsonClaim(GenericNamespacedResource):
    """A ResourceClaim as plain JSON."""

    _api_info = ApiInfo(
        resource=ResourceDef("resource.k8s.io", "v1", "ResourceClaim"), plural="resourceclaims", verbs=["get"]
    )


class NodePods:
    """What the API says of one node. `known` turns true with the first complete list; `pods` are by uid.

    `claims` has the bytes of EPC of the pods' ResourceClaims, by namespace and name, as far as they could be read.
    """

    def __init__(self, node: str, *, kubeconfig: str | None = None, resource: str = CANONICAL) -> None:
        self.node = EpcNode(node)
        self.pods: Mapping[str, EpcPod] = {}
        self.claims: Mapping[tuple[str, str], int] = {}
        self.known = False
        self._kubeconfig = kubeconfig
        self._resource = resource

    async def follow(self) -> None:
        """List, then watch, for `LIFE` at most; `ClusterError` when that fails."""
        client: Any = open_client(self._kubeconfig, field_manager="confcom-metrics")
        try:
            async with asyncio.timeout(LIFE):
                with cluster_errors(f"cannot follow the pods of node {self.node.name}", advice=_ADVICE):
                    version = await self._list(client)
                    await self._watch(client, version)
        except TimeoutError:
            return
        finally:
            await client.close()

    async def refresh(self) -> None:
        """Read the node again, and the claims that pods have come with; `ClusterError` when that fails."""
        client: Any = open_client(self._kubeconfig, field_manager="confcom-metrics")
        try:
            with cluster_errors(f"cannot read node {self.node.name}", advice=_ADVICE):
                found = await client.get(Node, self.node.name)
            status = {"allocatable": found.status and found.status.allocatable}
            self.node = parse_node({"metadata": {"name": self.node.name}, "status": status}, self._resource)
            await self._read_claims(client)
        finally:
            await client.close()

    async def _read_claims(self, client: Any) -> None:  # noqa: ANN401 - lightkube's signatures know its own models only
        wanted = [(pod.namespace, name) for pod in self.pods.values() for one in pod.containers for name in one.claims][
            :MAX_CLAIMS
        ]
        found = {claim: size for claim in wanted if (size := self.claims.get(claim))}
        for namespace, name in dict.fromkeys(claim for claim in wanted if claim not in found):
            with cluster_errors(f"cannot read the claim {namespace}/{name}", advice=_ADVICE):
                claim = await client.get(JsonClaim, name, namespace=namespace)
            found[namespace, name] = parse_claim(dict(claim))
        self.claims = found

    async def _list(self, client: Any) -> str:  # noqa: ANN401 - lightkube's signatures know its own models only
        listed = client.list(JsonPod, namespace="*", fields=self._own(), chunk_size=CHUNK)
        pods = {}
        async for document in listed:
            if (pod := _parse(document)) is not None:
                pods[pod.uid] = pod
        self.pods, self.known = pods, True
        return str(listed.resourceVersion)

    async def _watch(self, client: Any, version: str) -> None:  # noqa: ANN401 - as above
        seen = client.watch(
            JsonPod, namespace="*", fields=self._own(), resource_version=version, server_timeout=SERVER_TIMEOUT
        )
        async with aclosing(seen):
            async for kind, document in seen:
                pod = _parse(document)
                if pod is None:
                    continue
                others = {uid: other for uid, other in self.pods.items() if uid != pod.uid}
                self.pods = others if kind == "DELETED" else others | {pod.uid: pod}

    def _own(self) -> dict[str, str]:
        return {"spec.nodeName": self.node.name}


def _parse(document: Any) -> EpcPod | None:  # noqa: ANN401 - JSON
    try:
        return parse_pod(dict(document))
    except FormatError:
        return None  # no pod of ours is worth the others
