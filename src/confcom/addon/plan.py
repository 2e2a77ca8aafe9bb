"""What a command of the add-on changes, which pods use the add-on, and what it needs of a cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import unified_diff
from typing import Any, NamedTuple

from confcom.cluster.client import API_SERVICE_KIND, ClusterObjects, Ref, missing_ok
from confcom.errors import ConfigError
from confcom.manifests import judging, metrics
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.node_daemons import SOCKET_FOLDER, trial_claim
from confcom.manifests.objects import (
    DEVICE_PLUGIN,
    ITSELF,
    NAMESPACE,
    QUOTE_HELPER,
)
from confcom.manifests.simulated import WORLD_SECRET
from confcom.protocols.custom_metrics import GROUP
from confcom.protocols.epc import (
    BOOT_ANNOTATION,
    CANONICAL,
    DRA_DRIVER,
    ENCLAVE,
    HELPER,
    HELPER_EPC,
    OVERCOMMIT_LABEL,
    PROVISION,
    TRUE_SIZE_LABEL,
)

# Metadata that the server writes.
_SERVERS_OWN = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_COUNTER = "deprecated.daemonset.template.generation"
_SECRET_SHOWN = "(not shown)"  # noqa: S105 - no password

WORLD_REF = Ref("v1", "Secret", NAMESPACE, WORLD_SECRET)
STATE_REF = Ref("v1", "ConfigMap", NAMESPACE, ITSELF.name)
NAMESPACE_REF = Ref("v1", "Namespace", "", NAMESPACE)
PLUGIN_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, DEVICE_PLUGIN.name)
HELPER_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, QUOTE_HELPER.name)
KEPT = {
    STATE_REF: "the settings",
    WORLD_REF: "the simulated world, without which earlier quotes could not be verified",
} | {
    Ref(
        "v1", "PersistentVolumeClaim", NAMESPACE, f"{workload.name}{judging.CLAIM_SUFFIX}"
    ): "policies, audit record and signing keys of the attestation service"
    for workload in (judging.ATTESTATION, judging.ATTESTATION_SIMULATED)
}
"""What is deleted by a purge alone, and what it is."""


class Change(NamedTuple):
    """One object: create, change, delete or unchanged; `diff` has the lines of a unified diff."""

    verb: str
    ref: Ref
    diff: tuple[str, ...] = ()


def to_prune(present: Iterable[Ref], wanted: Iterable[Ref]) -> list[Ref]:
    """Objects that exist and are not wanted, in the order of deletion: the last kinds first."""
    keep = frozenset(wanted) | KEPT.keys()
    return [ref for ref in reversed(list(present)) if ref not in keep]


def change_of(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Change:
    """The difference between two states of an object. Contents of Secrets are not shown."""
    ref = Ref.of(after)
    old, new = ([] if one is None else _lines(one) for one in (before, after))
    verb = "create" if before is None else "unchanged" if old == new else "change"
    # Without the two header lines.
    return Change(verb, ref, tuple(unified_diff(old, new, n=2, lineterm=""))[2:])


def removal_of(present: Mapping[str, Any]) -> Change:
    """The deletion of an object."""
    return Change("delete", Ref.of(present))


def _lines(found: Mapping[str, Any]) -> list[str]:
    shown = {key: value for key, value in found.items() if key != "status"}
    shown["metadata"] = {key: value for key, value in found["metadata"].items() if key not in _SERVERS_OWN}
    annotations = {key: value for key, value in (found["metadata"].get("annotations") or {}).items() if key != _COUNTER}
    shown["metadata"]["annotations"] = annotations
    if found["kind"] == "Secret":
        shown["data"] = dict.fromkeys(found.get("data") or {}, _SECRET_SHOWN)
    return json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


DEVICE_RESOURCES = (CANONICAL, ENCLAVE, PROVISION)
NODE_RESOURCES = (*DEVICE_RESOURCES, HELPER, HELPER_EPC)
PLUGIN_MARKS = (TRUE_SIZE_LABEL, OVERCOMMIT_LABEL, BOOT_ANNOTATION)
"""Labels and annotations that the device plugin writes on its node. The operator writes `confcom.dev/sgx`: it stays."""

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
    """Whether it holds a claim, and so cannot end without the device plugin."""

    def __str__(self) -> str:
        where = f"on {self.node}" if self.node else "on no node yet"
        return f"{self.namespace}/{self.pod} {where}: {', '.join(self.what)}"


class Remains(NamedTuple):
    """What the add-on left on a node: extended resources in its status, labels and annotations (`marks`)."""

    node: str
    resources: tuple[str, ...]
    marks: tuple[str, ...]


def claim_holders(claims: Iterable[Mapping[str, Any]]) -> frozenset[tuple[str, str]]:
    """Namespace and name of every pod that holds a claim of our DRA driver."""
    found = set()
    for claim in claims:
        status = claim.get("status") or {}
        results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
        if any(result.get("driver") == DRA_DRIVER for result in results):
            found |= {(claim["metadata"]["namespace"], one["name"]) for one in status.get("reservedFor") or []}
    return frozenset(found)


def uses(pods: Iterable[Mapping[str, Any]], holders: frozenset[tuple[str, str]] = frozenset()) -> list[Use]:
    """Every pod outside the add-on that uses EPC, devices, the helper or, in `holders`, a claim."""
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
    """Nodes with resources, labels or annotations of the add-on."""
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
    if HELPER in amounts or any(_SOCKET_FOLDER.fullmatch(path.rstrip("/")) for path in paths):
        found.append("the quote helper")
    return tuple(found)


class Release(NamedTuple):
    """A minor release of Kubernetes."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = Release(1, 30)
"""Admission policies and match conditions of webhooks are stable, and a pod's token names its node."""
OLDEST_WITH_CLAIMS = Release(1, 34)
"""Claims are stable (resource.k8s.io/v1); a feature gate lets them request a part of a device."""
USUAL_WITH_CLAIMS = Release(1, 36)
"""That gate is on by default."""
GATE = "DRAConsumableCapacity"
MAX_SHOWN = 80
"""Characters of a version that are shown."""

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\D|$)")


def release_of(version: str) -> Release | None:
    """The release that a version such as `v1.33.5-gke.12` belongs to; None where it names none."""
    found = _VERSION.match(version)
    return Release(int(found[1]), int(found[2])) if found else None


async def check_cluster(cluster: ClusterObjects, config: AddonConfig) -> None:
    """`ConfigError` if the cluster is too old for the settings. A cluster without a readable version passes."""
    version = await cluster.version()
    release = release_of(version)
    if release is not None and release < OLDEST:
        raise ConfigError(
            f"this cluster is Kubernetes {_shown(version)}, and the add-on needs {OLDEST} or later",
            advice="Bring the cluster to a later version first; nothing was changed.",
        )
    if config.autoscaling:
        await refuse_other_metrics(cluster)
    if config.publisher != "dra":
        return
    if release is not None and release < OLDEST_WITH_CLAIMS:
        raise _no_claims(f"this cluster is Kubernetes {_shown(version)}")
    if not await _keeps_amounts_of_claims(cluster):
        raise _no_claims(f"this cluster, Kubernetes {_shown(version)}, has it switched off")


async def refuse_other_metrics(cluster: ClusterObjects) -> None:
    """`ConfigError` if another server has custom.metrics.k8s.io: HPA asks one version of it for all metrics."""
    for one in await cluster.objects(API_SERVICE_KIND):
        if one["spec"].get("group") != GROUP or metrics.is_ours(one):
            continue
        service = one["spec"].get("service") or {}
        owner = f"Service {service.get('namespace')}/{service.get('name')}" if service else "the API server itself"
        raise ConfigError(
            f"this cluster has a server for {GROUP} already: {owner}, by APIService {one['metadata']['name']}, and HPA "
            "would ask one of the two for all metrics",
            advice="Leave --enable-autoscaling out, and have Prometheus scrape the exporter: give prometheus-adapter "
            "the rules of deploy/autoscaling/prometheus-adapter-values.yaml, or use KEDA with "
            "deploy/autoscaling/keda-scaledobject.yaml.",
        )


async def _keeps_amounts_of_claims(cluster: ClusterObjects) -> bool:
    """Whether the server keeps the amount of a claim: it silently drops fields of a feature gate that is off."""
    with missing_ok():
        kept = await cluster.apply(trial_claim(), dry_run=True)
        return all("capacity" in request["exactly"] for request in kept["spec"]["spec"]["devices"]["requests"][:1])
    return False


def _no_claims(found: str) -> ConfigError:
    return ConfigError(
        f"--publisher dra needs claims of parts of a device, which Kubernetes has from {USUAL_WITH_CLAIMS} on (in "
        f"{OLDEST_WITH_CLAIMS} and 1.35 with the feature gate {GATE}); {found}",
        advice="Publish EPC as a resource instead, which every version can: --publisher auto.",
    )


def _shown(version: str) -> str:
    return version.removeprefix("v")[:MAX_SHOWN]
