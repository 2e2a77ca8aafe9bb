"""What an enable, update or disable would do to the objects in a cluster: pure, over JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import unified_diff
from typing import Any, NamedTuple

from confcom.cluster.objects import Ref
from confcom.manifests.objects import DEVICE_PLUGIN, ITSELF, NAMESPACE, QUOTE_HELPER
from confcom.manifests.simulated import WORLD_SECRET

# What the server writes beside what was applied.
_SERVERS_OWN = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_COUNTER = "deprecated.daemonset.template.generation"
_SECRET_SHOWN = "(not shown)"  # noqa: S105 - no password

WORLD_REF = Ref("v1", "Secret", NAMESPACE, WORLD_SECRET)
STATE_REF = Ref("v1", "ConfigMap", NAMESPACE, ITSELF.name)
NAMESPACE_REF = Ref("v1", "Namespace", "", NAMESPACE)
PLUGIN_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, DEVICE_PLUGIN.name)
HELPER_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, QUOTE_HELPER.name)
KEPT = frozenset({WORLD_REF, STATE_REF})
"""What outlives a disable: what the add-on remembers, and the simulated world that quotes were made in."""


class Change(NamedTuple):
    """What becomes of one object; `diff` has its lines."""

    verb: str
    ref: Ref
    diff: tuple[str, ...] = ()


def to_prune(present: Iterable[Ref], wanted: Iterable[Ref]) -> list[Ref]:
    """What is there and not wanted, in the order of deletion: the last kinds first."""
    keep = frozenset(wanted) | KEPT
    return [ref for ref in reversed(list(present)) if ref not in keep]


def change_of(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Change:
    """How an object changes. Contents of Secrets are not shown."""
    ref = Ref.of(after)
    old, new = ([] if one is None else _lines(one) for one in (before, after))
    verb = "create" if before is None else "unchanged" if old == new else "change"
    return Change(verb, ref, tuple(_diff(old, new)))


def removal_of(present: Mapping[str, Any]) -> Change:
    """An object that is deleted."""
    return Change("delete", Ref.of(present))


def _diff(old: Sequence[str], new: Sequence[str]) -> Iterable[str]:
    # Without the three header lines.
    return list(unified_diff(old, new, n=2, lineterm=""))[2:]


def _lines(found: Mapping[str, Any]) -> list[str]:
    shown = {key: value for key, value in found.items() if key != "status"}
    shown["metadata"] = {key: value for key, value in found["metadata"].items() if key not in _SERVERS_OWN}
    annotations = {key: value for key, value in (found["metadata"].get("annotations") or {}).items() if key != _COUNTER}
    shown["metadata"]["annotations"] = annotations
    if found["kind"] == "Secret":
        shown["data"] = dict.fromkeys(found.get("data") or {}, _SECRET_SHOWN)
    return json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
