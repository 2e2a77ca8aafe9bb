"""Which pods use what the add-on provides, and what it has left on nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from confcom.manifests.objects import ENCLAVE_RESOURCE, EPC_RESOURCE, NAMESPACE, PROVISION_RESOURCE
from confcom.manifests.quote_helper import SOCKET_FOLDER

NODE_RESOURCES = (EPC_RESOURCE, ENCLAVE_RESOURCE, PROVISION_RESOURCE)
PLUGIN_LABELS = ("confcom.dev/sgx-epc-mib", "confcom.dev/sgx-epc-overcommit")
"""What the device plugin writes on its node. `confcom.dev/sgx` is the operator's, and stays."""

_OVER = ("Succeeded", "Failed")
_SOCKET_FOLDER = re.compile(rf"(?:/var)?/run/{SOCKET_FOLDER.rpartition('/')[2]}(?:/.*)?")


class Use(NamedTuple):
    """A pod that uses EPC, the SGX devices or the quote helper."""

    namespace: str
    pod: str
    node: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        where = f"on {self.node}" if self.node else "on no node yet"
        return f"{self.namespace}/{self.pod} {where}: {', '.join(self.what)}"


class Remains(NamedTuple):
    """What is on a node of the add-on: extended resources in its status, and labels."""

    node: str
    resources: tuple[str, ...]
    labels: tuple[str, ...]


def uses(pods: Iterable[Mapping[str, Any]]) -> list[Use]:
    """Every pod outside the add-on that would notice its end."""
    found = []
    for pod in pods:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        over = (pod.get("status") or {}).get("phase") in _OVER
        if over or metadata["namespace"] == NAMESPACE:
            continue
        if what := _what(spec):
            found.append(Use(metadata["namespace"], metadata["name"], spec.get("nodeName", ""), what))
    return sorted(found)


def remains(nodes: Iterable[Mapping[str, Any]]) -> list[Remains]:
    """Nodes that still show something of the add-on."""
    found = []
    for node in nodes:
        status, metadata = node.get("status") or {}, node["metadata"]
        shown = {**(status.get("capacity") or {}), **(status.get("allocatable") or {})}
        resources = tuple(name for name in NODE_RESOURCES if name in shown)
        labels = tuple(name for name in PLUGIN_LABELS if name in (metadata.get("labels") or {}))
        if resources or labels:
            found.append(Remains(metadata["name"], resources, labels))
    return found


def _what(spec: Mapping[str, Any]) -> tuple[str, ...]:
    amounts: dict[str, str] = {}
    for one in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        limits = (one.get("resources") or {}).get("limits") or {}
        amounts |= {name: str(limits[name]) for name in NODE_RESOURCES if name in limits}
    found = [f"{name}={amount}" for name, amount in amounts.items()]
    paths = [(volume.get("hostPath") or {}).get("path", "") for volume in spec.get("volumes") or []]
    if any(_SOCKET_FOLDER.fullmatch(path.rstrip("/")) for path in paths):
        found.append("the quote helper")
    return tuple(found)
