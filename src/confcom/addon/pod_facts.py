"""What a cluster says of one pod: its spec, events, owner, add-on, and the EPC and quotes of its node.

`gather` reads with the rights of the user; whatever may not be read is named in `Facts.missing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from confcom.addon.overview import Overview, overview
from confcom.addon.plan import STATE_REF
from confcom.admission.decision import find_pods
from confcom.admission.pod_json import Json
from confcom.cluster.nodes import ClusterEpc
from confcom.cluster.objects import OWNER_KINDS, Object, Ref
from confcom.errors import ClusterError, ClusterRefused, ConfigError, FormatError
from confcom.manifests.addon import AddonState, parse_state
from confcom.protocols.epc import EpcPod, parse_pod

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation in which `kubectl apply` keeps the manifest as its author wrote it."""
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_OWNERS = {kind.name: kind.api_version for kind in OWNER_KINDS} | {"DaemonSet": "apps/v1"}
_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the cluster says of a pod. None is unknown; `missing` says why."""

    pod: Json
    epc: EpcPod
    events: Sequence[Object] = ()
    addon: AddonState | None = None
    addon_known: bool = True
    written: Json | None = None
    """The pod as its author wrote it, from the object that owns it or from `LAST_APPLIED`."""
    written_in: str = ""
    overview: Overview = field(default_factory=lambda: Overview((), ()))
    missing: tuple[str, ...] = ()


def place_of(word: str, namespace: str | None, default: str) -> tuple[str, str]:
    """Namespace and name of `NAME`, `pod/NAME` or `NAMESPACE/NAME`; `ConfigError` for anything else."""
    before, slash, name = word.rpartition("/")
    if slash and before not in ("pod", "pods"):
        if namespace not in (None, before):
            raise ConfigError(f"{word} is of another namespace than -n {namespace}", advice="Leave one of them out.")
        namespace = before
    place = (namespace or default, name)
    for what, text in zip(("namespace", "pod"), place, strict=True):
        if _NAME.fullmatch(text) is None:
            advice = "Write NAME, or NAMESPACE/NAME as `confcom top` shows it."
            raise ConfigError(f"{text!r} is no name of a {what}", advice=advice)
    return place


async def gather(cluster: ClusterEpc, namespace: str, name: str) -> Facts:
    """Read all that there is to say of a pod; `ClusterRefused` if it does not exist or may not be read."""
    ref = Ref("v1", "Pod", namespace, name)
    try:
        pod = await cluster.get(ref)
    except ClusterRefused as refused:
        advice = f"Ask for the right to get pods in namespace {namespace}."
        raise ClusterRefused(refused.message, status=refused.status, reason=refused.reason, advice=advice) from refused
    if pod is None:
        advice = f"See which there are: kubectl get pods -n {namespace}. For another namespace: -n NAMESPACE."
        raise ClusterRefused(f"there is no pod {namespace}/{name}", status=404, reason="NotFound", advice=advice)
    missing: list[str] = []

    async def read(part: Awaitable[_Part], without: _Part) -> _Part:
        try:
            return await part
        except (ClusterError, ConfigError) as error:
            missing.append(error.message)
            return without

    about = parse_pod(pod)
    addon = await read(_state(cluster), None)
    events = await read(cluster.events_of(ref), [])
    written, written_in = await read(_written(cluster, pod), (None, ""))
    found = await read(overview(cluster, node=about.node), Overview((), ()))
    return Facts(
        *(pod, about, [one for one in events if (one.get("involvedObject") or {}).get("uid") == about.uid]),
        addon=addon,
        addon_known=not any(str(STATE_REF) in clause for clause in missing),
        written=written,
        written_in=written_in,
        overview=found,
        missing=(*missing, *found.missing),
    )


async def _state(cluster: ClusterEpc) -> AddonState | None:
    settings = await cluster.get(STATE_REF)
    return None if settings is None else parse_state(settings.get("data") or {})


async def _written(cluster: ClusterEpc, pod: Object) -> tuple[Json | None, str]:
    """The pod of the object that owns this one, or of `kubectl apply`; and where it stands."""
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller") and _OWNERS.get(owner["kind"]) == owner["apiVersion"]:
            ref = Ref(owner["apiVersion"], owner["kind"], metadata["namespace"], owner["name"])
            holder = await cluster.get(ref)
            return (None, "") if holder is None else (_first_pod(holder), f"{owner['kind']} {owner['name']}")
    applied = (metadata.get("annotations") or {}).get(LAST_APPLIED)
    if applied is None:
        return None, ""
    try:
        return _first_pod(json.loads(applied)), "what was applied"
    except (ValueError, RecursionError):  # users write annotations
        return None, ""


def _first_pod(manifest: object) -> Json | None:
    try:
        return next((one.pod for one in find_pods(manifest)), None) if isinstance(manifest, dict) else None
    except FormatError:
        return None
