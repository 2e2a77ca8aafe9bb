"""Reads EPC of nodes and pods of the whole cluster, and metrics of the add-on's pods through the API server's proxy."""

from __future__ import annotations

from typing import Any

import msgspec
from lightkube.core.generic_client import BasicRequest

from confcom.cluster.client import cluster_errors
from confcom.cluster.objects import NODE_KIND, POD_KIND, ClusterObjects
from confcom.errors import ClusterError, ClusterRefused, FormatError
from confcom.protocols.epc import EpcNode, EpcPod, parse_node, parse_pod
from confcom.protocols.prometheus_text import MAX_PAGE

CHUNK = 500
"""Objects per answer."""


class _Status(msgspec.Struct):
    message: str = ""


_STATUS = msgspec.json.Decoder(_Status)


class ClusterEpc(ClusterObjects):
    """One cluster, with the rights of the kubeconfig's user: beside its objects the EPC of nodes and pods."""

    async def nodes(self) -> list[EpcNode]:
        """Every node."""
        with cluster_errors("cannot list the nodes", advice="Ask for the right to list nodes."):
            listed = self._client.list(NODE_KIND.resource, chunk_size=CHUNK)
            return [parse_node(dict(document)) async for document in listed]

    async def pods(self, namespace: str | None = None, labels: dict[str, str] | None = None) -> list[EpcPod]:
        """Pods of a namespace, or of all; malformed ones are skipped."""
        found = []
        with cluster_errors("cannot list the pods", advice="Ask for the right to list pods."):
            listed = self._client.list(POD_KIND.resource, namespace=namespace or "*", labels=labels, chunk_size=CHUNK)
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
            kind = ClusterRefused if response.status_code < 500 else ClusterError
            message = f"cannot read the metrics of pod {pod}: {_reason(page, response.status_code)}"
            raise kind(message, status=response.status_code, advice=advice)
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
        return _STATUS.decode(page).message or f"HTTP {status}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"HTTP {status}"
