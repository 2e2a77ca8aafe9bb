"""Which pods use what the add-on provides, and what it has left on nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from confcom.cluster.node_values import BOOT_ANNOTATION, OVERCOMMIT_LABEL, TRUE_SIZE_LABEL
from confcom.manifests.objects import (
    ENCLAVE_RESOURCE,
    EPC_RESOURCE,
    HELPER_EPC,
    HELPER_RESOURCE,
    NAMESPACE,
    PROVISION_RESOURCE,
)
from confcom.manifests.quote_helper import SOCKET_FOLDER
from confcom.protocols.dra_objects import DRIVER

DEVICE_RESOURCES = (EPC_RESOURCE, ENCLAVE_RESOURCE, PROVISION_RESOURCE)
NODE_RESOURCES = (*DEVICE_RESOURCES, HELPER_RESOURCE, HELPER_EPC)
PLUGIN_MARKS = (TRUE_SIZE_LABEL, OVERCOMMIT_LABEL, BOOT_ANNOTATION)
"""Labels and annotations that the device plugin writes on its node. `confcom.dev/sgx` is the operator's, and stays."""

_CLAIM = "a claim of EPC, with which it cannot end while the add-on is away"
_OVER = ("Succeeded", "Failed")
_SOCKET_FOLDER = re.compile(rf"(?:/var)?/run/{SOCKET_FOLDER.rpartition('/')[2]}(?:/.*)?")


class Use(NamedTuple):
    """A pod that uses EPC, the SGX devices or the quote helper."""

    namespace: str
    pod: str
    node: str
    what: tuple[str, ...]
    claims: bool = False
    """Whether it holds a claim, and so cannot end while the device plugin is away."""

    def __str__(self) -> str:
        where = f"on {self.node}" if self.node else "on no node yet"
        return f"{self.namespace}/{self.pod} {where}: {', '.join(self.what)}"


class Remains(NamedTuple):
    """What is on a node of the add-on: extended resources in its status, and marks: labels and annotations."""

    node: str
    resources: tuple[str, ...]
    marks: tuple[str, ...]


def claim_holders(claims: Iterable[Mapping[str, Any]]) -> frozenset[tuple[str, str]]:
    """Namespace and name of every pod for which something of our DRA driver is reserved."""
    found = set()
    for claim in claims:
        status = claim.get("status") or {}
        results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
        if any(result.get("driver") == DRIVER for result in results):
            found |= {(claim["metadata"]["namespace"], one["name"]) for one in status.get("reservedFor") or []}
    return frozenset(found)


def uses(pods: Iterable[Mapping[str, Any]], holders: frozenset[tuple[str, str]] = frozenset()) -> list[Use]:
    """Every pod outside the add-on that would notice its end; `holders` hold claims."""
    found = []
    for pod in pods:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        over = (pod.get("status") or {}).get("phase") in _OVER
        if over or metadata["namespace"] == NAMESPACE:
            continue
        place = (metadata["namespace"], metadata["name"])
        what = _what(spec) + ((_CLAIM,) if place in holders else ())
        if what:
            found.append(Use(*place, spec.get("nodeName", ""), what, place in holders))
    return sorted(found)


def remains(nodes: Iterable[Mapping[str, Any]]) -> list[Remains]:
    """Nodes that still show something of the add-on."""
    found = []
    for node in nodes:
        status, metadata = node.get("status") or {}, node["metadata"]
        shown = {**(status.get("capacity") or {}), **(status.get("allocatable") or {})}
        resources = tuple(name for name in NODE_RESOURCES if name in shown)
        written = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
        marks = tuple(name for name in PLUGIN_MARKS if name in written)
        if resources or marks:
            found.append(Remains(metadata["name"], resources, marks))
    return found


def _what(spec: Mapping[str, Any]) -> tuple[str, ...]:
    amounts: dict[str, str] = {}
    for one in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        limits = (one.get("resources") or {}).get("limits") or {}
        amounts |= {name: str(limits[name]) for name in NODE_RESOURCES if name in limits}
    found = [f"{name}={amount}" for name, amount in amounts.items() if name in DEVICE_RESOURCES]
    paths = [(volume.get("hostPath") or {}).get("path", "") for volume in spec.get("volumes") or []]
    if HELPER_RESOURCE in amounts or any(_SOCKET_FOLDER.fullmatch(path.rstrip("/")) for path in paths):
        found.append("the quote helper")
    return tuple(found)
