"""The decision on a pod: `decide_pod` for a new one, `decide_debug` for ephemeral containers added to one.

Neither changes its argument: it returns a new pod that shares every unchanged part with the given one.
Applied to its own result, it decides the same and changes nothing. `find_pods` and `check_pod` judge the pods and pod
templates of manifests before they are applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from confcom.admission.epc_amounts import (
    SgxRequest,
    Stray,
    check_devices,
    check_places,
    check_thousands,
    normalize,
    overhead_epc,
    pod_epc,
    read_request,
    report_stray,
    stray_amounts,
    without_defaults,
)
from confcom.admission.findings import MAX_FINDINGS, Finding, Findings
from confcom.admission.pod_json import (
    NO_GRANTS,
    Container,
    Grants,
    Json,
    containers_of,
    json_object,
    json_objects,
    json_text,
    spec_of,
    with_containers,
    with_label,
)
from confcom.admission.quote_modes import (
    IN_PROC,
    OUT_OF_PROC,
    Annotated,
    Choice,
    FolderVolume,
    Wiring,
    find_volume,
    mode_of,
    mounts_folder,
    read_annotations,
    warn_of_socket,
    with_mount,
    with_variable,
    with_volume,
)
from confcom.protocols.admission import LABEL, LABEL_VALUE

DEFAULT_ACCOUNT = "default"
MOST: Mapping[str, int] = {
    "containers": 128,
    "volumes": 1024,
    "environment variables": 8192,
    "volume mounts": 4096,
    "annotations": 1024,
}
"""Limits of a pod that is judged: more than a node runs, and few enough to be read in 20 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionContext:
    """What a decision depends on besides the pod."""

    namespace: str
    grants: Grants = NO_GRANTS
    largest_node: int | None = None
    """MiB of EPC of the largest node; 0: no node has any; None: unknown."""
    oversized_waits: bool = False
    """Whether a pod that no node can hold is admitted, because larger nodes may come."""
    helper: bool = True
    """Whether the quote helper is enabled."""
    wiring: Wiring = "plugin"
    """How its folder gets into containers."""


class Decision(NamedTuple):
    """The result for a pod: admitted as `pod` if there are no refusals."""

    pod: Json
    refusals: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    epc: int
    """MiB that the pod takes from one node."""


class _Plan(NamedTuple):
    """A container, what it requests, and where it gets its quotes."""

    container: Container
    request: SgxRequest
    choice: Choice | None
    mounts_folder: bool
    """Whether something is mounted in the place of the helper's folder."""

    @property
    def asks_helper(self) -> bool:
        return self.choice is not None and self.choice.mode == OUT_OF_PROC

    @property
    def needs_volume(self) -> bool:
        return self.asks_helper and not self.request.helper and not self.mounts_folder


def decide_pod(pod: Json, context: AdmissionContext) -> Decision:
    """Complete a new pod, or refuse it."""
    findings = Findings()
    containers = list(containers_of(pod, "initContainers", "containers"))
    if not _is_bounded(pod, containers, findings):
        return Decision(pod, tuple(findings.refusals), (), 0)
    containers = without_defaults(pod, containers)
    check_places(pod, containers, findings)
    annotated = read_annotations(pod, dict.fromkeys(container.name for container in containers), findings)
    plans = [_plan(container, annotated, context, findings) for container in containers]
    _check_annotations(plans, annotated, findings)
    concerned = any(plan.request.uses_sgx or plan.choice is not None for plan in plans)
    if concerned:
        for plan in plans:
            _check_image(plan.container, findings)
    # The API server fills in the first of them from the second, its former name.
    names = (json_text(spec_of(pod), name, "spec") for name in ("serviceAccountName", "serviceAccount"))
    account = next(filter(None, names), DEFAULT_ACCOUNT)
    _check_grant(plans, context, account, findings)
    epc = pod_epc((plan.container, plan.request.epc) for plan in plans) + overhead_epc(pod)
    _check_size(epc, context, findings)
    if not findings.refusals:
        check_devices(pod, containers, findings, uses_sgx=concerned)
        _warn(pod, plans, context, findings)
    wanted = pod if findings.refusals else _complete(pod, plans)
    if concerned and not findings.refusals:
        wanted = with_label(wanted, LABEL, LABEL_VALUE)
    return Decision(wanted, tuple(findings.refusals), tuple(findings.warnings), epc)


def decide_debug(pod: Json, former: Json, context: AdmissionContext) -> Decision:
    """Complete the ephemeral containers that were added to the pod `former`, or refuse them."""
    findings = Findings()
    if not _is_bounded(pod, list(containers_of(pod, "ephemeralContainers")), findings):
        return Decision(pod, tuple(findings.refusals), (), 0)
    before = {container.name for container in containers_of(former, "ephemeralContainers")}
    added = [one for one in containers_of(pod, "ephemeralContainers") if one.name not in before]
    # Annotations were judged when the pod was made; here only those about the added containers count.
    own = read_annotations(pod, dict.fromkeys(one.name for one in added), Findings())
    annotated = Annotated(None, own.named)
    plans = []
    for container in added:
        request = read_request(container, Findings())
        choice = mode_of(container, request, annotated, findings)
        plans.append(_Plan(container, request, choice, mounts_folder(container)))
    volume = find_volume(pod)
    for plan in plans:
        _check_debug(plan, volume, findings)
    _warn_of_helper(pod, plans, context, findings)
    wanted = pod if findings.refusals else _complete(pod, plans)
    return Decision(wanted, tuple(findings.refusals), tuple(findings.warnings), 0)


def _is_bounded(pod: Json, containers: Sequence[Container], findings: Findings) -> bool:
    """Whether the pod is within `MOST`."""
    counts = {
        "containers": len(containers),
        "volumes": len(json_objects(spec_of(pod), "volumes", "spec")),
        "environment variables": sum(len(json_objects(one.body, "env", one.where)) for one in containers),
        "volume mounts": sum(len(json_objects(one.body, "volumeMounts", one.where)) for one in containers),
        "annotations": len(json_object(json_object(pod, "metadata", ""), "annotations", "metadata")),
    }
    for things, count in counts.items():
        if count > MOST[things]:
            findings.refuse("too-many", count=count, things=things, limit=MOST[things])
    return not findings.refusals


def _plan(container: Container, annotated: Annotated, context: AdmissionContext, findings: Findings) -> _Plan:
    request = read_request(container, findings)
    choice = mode_of(container, request, annotated, findings)
    mounted = mounts_folder(container)
    if choice is not None and choice.mode == IN_PROC:
        request = request._replace(provision=max(request.provision, 1))
    elif choice is not None and context.wiring == "plugin" and not mounted:
        request = request._replace(helper=max(request.helper, 1))
    return _Plan(container, request, choice, mounted)


def _complete(pod: Json, plans: Sequence[_Plan]) -> Json:
    volume = find_volume(pod)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        changed = {}
        for plan in plans:
            if plan.container.kind != kind:
                continue
            body = normalize(plan.container, plan.request)
            if plan.needs_volume:
                body = with_mount(plan.container, body, volume)
            if plan.asks_helper:
                body = with_variable(plan.container, body)
            if body is not plan.container.body:
                changed[plan.container.position] = body
        pod = with_containers(pod, kind, changed)
    return with_volume(pod, volume) if any(plan.needs_volume for plan in plans) else pod


def _check_annotations(plans: Sequence[_Plan], annotated: Annotated, findings: Findings) -> None:
    """Refuse annotations about containers without EPC: they would silently have no effect."""
    if findings.refusals:
        return
    for plan in plans:
        for choice in annotated.named.get(plan.container.name, ()):
            if not plan.request.epc and not plan.request.claims:
                annotation = choice.source.removeprefix("annotation ")
                findings.refuse("mode-without-epc", annotation=annotation, subject=f"container {plan.container.name}")
    if annotated.everywhere is not None and not any(plan.request.epc or plan.request.claims for plan in plans):
        annotation = annotated.everywhere.source.removeprefix("annotation ")
        findings.refuse("mode-without-epc", annotation=annotation, subject="the pod")


def _check_image(container: Container, findings: Findings) -> None:
    image = json_text(container.body, "image", container.where)
    words = image.split()
    if words and words != [image]:
        proposal = "".join(words)
        findings.refuse("blank-in-image", container=container.name, image=f'"{image}"', proposal=proposal)


def _check_grant(plans: Sequence[_Plan], context: AdmissionContext, account: str, findings: Findings) -> None:
    for plan in plans:
        if plan.request.provision and not context.grants.allow(context.namespace, account):
            findings.refuse(
                "provision-not-granted", container=plan.container.name, account=f"{context.namespace}/{account}"
            )


def _check_size(epc: int, context: AdmissionContext, findings: Findings) -> None:
    if not epc or context.largest_node is None:
        return
    if context.largest_node == 0:
        findings.warn("no-node-has-epc")
    elif epc > context.largest_node:
        sizes = {"wanted": epc, "largest": context.largest_node}
        if context.oversized_waits:
            findings.warn("no-node-holds-it-yet", **sizes)
        else:
            findings.refuse("no-node-holds-it", **sizes)


def _check_debug(plan: _Plan, volume: FolderVolume, findings: Findings) -> None:
    if plan.request.uses_sgx or plan.request.helper or (plan.choice is not None and plan.choice.mode == IN_PROC):
        findings.refuse("debug-resources", container=plan.container.name)
    elif plan.needs_volume and not volume.exists:
        findings.refuse("debug-volume", container=plan.container.name)


def _warn(pod: Json, plans: Sequence[_Plan], context: AdmissionContext, findings: Findings) -> None:
    for plan in plans:
        if plan.asks_helper:
            warn_of_socket(plan.container, findings)
            if not plan.request.uses_sgx and not plan.request.claims:
                findings.warn("variable-without-epc", container=plan.container.name)
    _warn_of_helper(pod, plans, context, findings)


def _warn_of_helper(pod: Json, plans: Sequence[_Plan], context: AdmissionContext, findings: Findings) -> None:
    asking = [plan for plan in plans if plan.asks_helper]
    if context.helper or not asking:
        return
    if not all(plan.mounts_folder for plan in asking):
        findings.warn("helper-off")
    elif find_volume(pod).exists:
        # Only the node's folder is empty without the helper; another volume may hold a helper of the pod's own.
        findings.warn("folder-empty")


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
