"""Where a cluster's API server is, as its own Service says: network policies have to let pods ask there.

Plugins for the network look at a connection before or after the Service's address was replaced by that of the server
behind it, so the ports of both count.
"""

from __future__ import annotations

from collections.abc import Callable

from confcom.cluster.object_kinds import SLICE_KIND
from confcom.cluster.objects import ClusterObjects, Ref
from confcom.errors import ClusterRefused

SERVICE = Ref("v1", "Service", "default", "kubernetes")
SERVICE_NAME = "kubernetes.io/service-name"
"""The label that says whose addresses an EndpointSlice has."""


async def ports_of_api(cluster: ClusterObjects, tell: Callable[[str], None]) -> tuple[int, ...]:
    """Every port, each once, in rising order; none where the caller may not read them, which is told."""
    try:
        service = await cluster.get(SERVICE)
        slices = await cluster.objects(SLICE_KIND, namespace=SERVICE.namespace, labels={SERVICE_NAME: SERVICE.name})
    except ClusterRefused as refused:
        tell(f"where the API server listens could not be read, so --api-ports decides: {refused.message}")
        return ()
    specs = [] if service is None else [service["spec"]]
    found = {entry.get("port") for one in (*specs, *slices) for entry in one.get("ports") or []}
    return tuple(sorted(port for port in found if isinstance(port, int)))
