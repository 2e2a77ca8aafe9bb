"""Finds pods and pod templates in manifests, and checks them before they are applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from confcom.admission.decision import AdmissionContext, Decision, decide_pod
from confcom.admission.epc_amounts import Stray, check_thousands, report_stray, stray_amounts
from confcom.admission.findings import MAX_FINDINGS, Finding, Findings
from confcom.admission.pod_json import Json, containers_of, json_object, json_objects, json_text

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
}
"""Kind → the members that lead to its pod."""
MAX_DEPTH = 4
"""Lists in lists."""


class FoundPod(NamedTuple):
    """A pod of a manifest, with the kind and name of the object that has it."""

    kind: str
    name: str
    namespace: str
    """Empty if the manifest does not set it."""
    pod: Json
    around: Sequence[Stray] = ()
    """Amounts of SGX resources in the manifest around the pod."""


def find_pods(manifest: Mapping[str, object], *, depth: int = MAX_DEPTH) -> Iterator[FoundPod]:
    """Every pod of a manifest; `FormatError` if its form is not that of its kind."""
    kind = json_text(manifest, "kind", "manifest")
    if kind == "List" and depth:
        for item in json_objects(manifest, "items", kind):
            yield from find_pods(item, depth=depth - 1)
        return
    if kind not in TEMPLATES:
        return
    metadata = json_object(manifest, "metadata", kind)
    found = dict(manifest)
    for member in TEMPLATES[kind]:
        found = json_object(found, member, kind)
    name = json_text(metadata, "name", kind) or json_text(metadata, "generateName", kind)
    around = () if not TEMPLATES[kind] else tuple(islice(stray_amounts(manifest, apart_from=found), MAX_FINDINGS))
    yield FoundPod(kind, name, json_text(metadata, "namespace", kind), found, around)


def check_pod(pod: Json, context: AdmissionContext, around: Sequence[Stray] = ()) -> Decision:
    """The webhook's decision, with refusals of what the API server would not parse."""
    mistakes = Findings()
    for stray in around:
        report_stray(stray, mistakes)
    for container in containers_of(pod, "initContainers", "containers"):
        check_thousands(container, mistakes)
        for variable in json_objects(container.body, "env", container.where):
            value = variable.get("value")
            if isinstance(value, (bool, int, float)):
                shown = str(value).lower() if isinstance(value, bool) else value
                name = json_text(variable, "name", f"{container.where}.env")
                mistakes.refuse("text-expected", container=container.name, name=name, value=shown)
        for member in ("command", "args"):
            words = container.body.get(member)
            for word in words if isinstance(words, list) else ():
                if isinstance(word, (bool, int, float)):
                    mistakes.refuse("word-expected", container=container.name, name=member, value=word)
    decision = decide_pod(pod, context)
    refusals: tuple[Finding, ...] = (*mistakes.refusals, *decision.refusals)
    return decision._replace(refusals=refusals, warnings=(*mistakes.warnings, *decision.warnings))
