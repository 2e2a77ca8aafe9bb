"""The decision on a pod. `decide_pod` is for one that is made, `decide_debug` for ephemeral containers added to one.

Neither changes what it is given: it returns the pod as it shall be, which shares with the given one all that stays.
Asked about its own result, it says the same and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from confcom.admission.aesm_wiring import (
    FolderVolume,
    Wiring,
    find_volume,
    mounts_folder,
    warn_of_socket,
    with_mount,
    with_variable,
    with_volume,
)
from confcom.admission.epc_amounts import Wish, fulfil, pod_epc, read_wish, without_defaults
from confcom.admission.findings import Finding, Findings
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
from confcom.admission.quote_modes import IN_PROC, OUT_OF_PROC, Annotated, Choice, mode_of, read_annotations
from confcom.admission.uncounted import check_devices, check_places
from confcom.protocols.admission import LABEL, LABEL_VALUE

DEFAULT_ACCOUNT = "default"
MOST: Mapping[str, int] = {
    "values": 65_536,
    "containers": 128,
    "volumes": 1024,
    "environment variables": 8192,
    "volume mounts": 4096,
    "annotations": 1024,
}
"""What a pod may have of each. More than a node runs, and little enough to be looked through in 20 ms.

Values are all members and elements of its JSON, counted before they are made.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the decision rests on besides the pod."""

    namespace: str
    grants: Grants = NO_GRANTS
    largest_node: int | None = None
    """MiB of EPC of the node that has most; 0: no node has any; None: not known."""
    oversized_waits: bool = False
    """Whether a pod that no node can hold is let through, because larger nodes may come."""
    helper: bool = True
    """Whether the quote helper is enabled."""
    wiring: Wiring = "plugin"
    """Who brings its folder into containers."""


class Decision(NamedTuple):
    """What becomes of a pod. It is let through, as `pod`, if there are no refusals."""

    pod: Json
    refusals: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    epc: int
    """MiB that the pod takes of one node."""


class _Plan(NamedTuple):
    """A container, what it asks for, and where it gets its quotes."""

    container: Container
    wish: Wish
    choice: Choice | None
    mounts_folder: bool
    """Whether something is mounted where the helper's socket is looked for."""

    @property
    def asks_helper(self) -> bool:
        return self.choice is not None and self.choice.mode == OUT_OF_PROC

    @property
    def needs_volume(self) -> bool:
        return self.asks_helper and not self.wish.helper and not self.mounts_folder


def decide_pod(pod: Json, given: Circumstances) -> Decision:
    """Complete a pod that is being made, or say why it cannot be."""
    findings = Findings()
    containers = list(containers_of(pod, "initContainers", "containers"))
    if not _is_bounded(pod, containers, findings):
        return Decision(pod, tuple(findings.refusals), (), 0)
    containers = without_defaults(pod, containers)
    check_places(pod, containers, findings)
    annotated = read_annotations(pod, dict.fromkeys(container.name for container in containers), findings)
    plans = [_plan(container, annotated, given, findings) for container in containers]
    _check_annotations(plans, annotated, findings)
    concerned = any(plan.wish.uses_sgx or plan.choice is not None for plan in plans)
    if concerned:
        for plan in plans:
            _check_image(plan.container, findings)
    account = json_text(spec_of(pod), "serviceAccountName", "spec") or DEFAULT_ACCOUNT
    _check_grant(plans, given, account, findings)
    epc = pod_epc((plan.container, plan.wish.epc) for plan in plans)
    _check_size(epc, given, findings)
    if not findings.refusals:
        check_devices(pod, containers, findings, uses_sgx=concerned)
        _warn(pod, plans, given, findings)
    wanted = pod if findings.refusals else _complete(pod, plans)
    if concerned and not findings.refusals:
        wanted = with_label(wanted, LABEL, LABEL_VALUE)
    return Decision(wanted, tuple(findings.refusals), tuple(findings.warnings), epc)


def decide_debug(pod: Json, former: Json, given: Circumstances) -> Decision:
    """Complete ephemeral containers that are added to the pod `former`, or say why they cannot be."""
    findings = Findings()
    if not _is_bounded(pod, list(containers_of(pod, "ephemeralContainers")), findings):
        return Decision(pod, tuple(findings.refusals), (), 0)
    before = {container.name for container in containers_of(former, "ephemeralContainers")}
    added = [one for one in containers_of(pod, "ephemeralContainers") if one.name not in before]
    # Annotations were judged when the pod was made; those of containers that are not there are of no concern now.
    own = read_annotations(pod, dict.fromkeys(one.name for one in added), Findings())
    annotated = Annotated(None, own.named)
    plans = []
    for container in added:
        wish = read_wish(container, Findings())
        choice = mode_of(container, wish, annotated, findings)
        plans.append(_Plan(container, wish, choice, mounts_folder(container)))
    volume = find_volume(pod)
    for plan in plans:
        _check_debug(plan, volume, findings)
    _warn_of_helper(pod, plans, given, findings)
    wanted = pod if findings.refusals else _complete(pod, plans)
    return Decision(wanted, tuple(findings.refusals), tuple(findings.warnings), 0)


def _is_bounded(pod: Json, containers: Sequence[Container], findings: Findings) -> bool:
    """Whether the pod is small enough to be looked through."""
    counts = {
        "containers": len(containers),
        "volumes": len(json_objects(spec_of(pod), "volumes", "spec")),
        "environment variables": sum(len(json_objects(one.body, "env", one.where)) for one in containers),
        "volume mounts": sum(len(json_objects(one.body, "volumeMounts", one.where)) for one in containers),
        "annotations": len(json_object(json_object(pod, "metadata", "pod"), "annotations", "metadata")),
    }
    for things, count in counts.items():
        check_count(things, count, findings)
    return not findings.refusals


def check_count(things: str, count: int, findings: Findings) -> None:
    """Refuse a pod that has too many of something that `MOST` limits."""
    if count > MOST[things]:
        findings.refuse("too-many", count=count, things=things, limit=MOST[things])


def _plan(container: Container, annotated: Annotated, given: Circumstances, findings: Findings) -> _Plan:
    wish = read_wish(container, findings)
    choice = mode_of(container, wish, annotated, findings)
    mounted = mounts_folder(container)
    if choice is not None and choice.mode == IN_PROC:
        wish = wish._replace(provision=max(wish.provision, 1))
    elif choice is not None and given.wiring == "plugin" and not mounted:
        wish = wish._replace(helper=max(wish.helper, 1))
    return _Plan(container, wish, choice, mounted)


def _complete(pod: Json, plans: Sequence[_Plan]) -> Json:
    volume = find_volume(pod)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        changed = {}
        for plan in plans:
            if plan.container.kind != kind:
                continue
            body = fulfil(plan.container, plan.wish)
            if plan.needs_volume:
                body = with_mount(plan.container, body, volume)
            if plan.asks_helper:
                body = with_variable(plan.container, body)
            if body is not plan.container.body:
                changed[plan.container.position] = body
        pod = with_containers(pod, kind, changed)
    return with_volume(pod, volume) if any(plan.needs_volume for plan in plans) else pod


def _check_annotations(plans: Sequence[_Plan], annotated: Annotated, findings: Findings) -> None:
    """An annotation that is about containers without EPC would silently do nothing."""
    if findings.refusals:
        return
    for plan in plans:
        for choice in annotated.named.get(plan.container.name, ()):
            if not plan.wish.epc and not plan.wish.claims:
                annotation = choice.source.removeprefix("annotation ")
                findings.refuse("mode-without-epc", annotation=annotation, whose=f"container {plan.container.name}")
    if annotated.everywhere is not None and not any(plan.wish.epc or plan.wish.claims for plan in plans):
        annotation = annotated.everywhere.source.removeprefix("annotation ")
        findings.refuse("mode-without-epc", annotation=annotation, whose="the pod")


def _check_image(container: Container, findings: Findings) -> None:
    image = json_text(container.body, "image", container.where)
    words = image.split()
    if words and words != [image]:
        proposal = "".join(words)
        findings.refuse("blank-in-image", container=container.name, image=f'"{image}"', proposal=proposal)


def _check_grant(plans: Sequence[_Plan], given: Circumstances, account: str, findings: Findings) -> None:
    for plan in plans:
        if plan.wish.provision and not given.grants.allow(given.namespace, account):
            findings.refuse(
                "provision-not-granted", container=plan.container.name, account=f"{given.namespace}/{account}"
            )


def _check_size(epc: int, given: Circumstances, findings: Findings) -> None:
    if not epc or given.largest_node is None:
        return
    if given.largest_node == 0:
        findings.warn("no-node-has-epc")
    elif epc > given.largest_node:
        sizes = {"wanted": epc, "largest": given.largest_node}
        if given.oversized_waits:
            findings.warn("no-node-holds-it-yet", **sizes)
        else:
            findings.refuse("no-node-holds-it", **sizes)


def _check_debug(plan: _Plan, volume: FolderVolume, findings: Findings) -> None:
    if plan.wish.uses_sgx or plan.wish.helper or (plan.choice is not None and plan.choice.mode == IN_PROC):
        findings.refuse("debug-resources", container=plan.container.name)
    elif plan.needs_volume and not volume.exists:
        findings.refuse("debug-volume", container=plan.container.name)


def _warn(pod: Json, plans: Sequence[_Plan], given: Circumstances, findings: Findings) -> None:
    for plan in plans:
        if plan.asks_helper:
            warn_of_socket(plan.container, findings)
            if not plan.wish.uses_sgx and not plan.wish.claims:
                findings.warn("variable-without-epc", container=plan.container.name)
    _warn_of_helper(pod, plans, given, findings)


def _warn_of_helper(pod: Json, plans: Sequence[_Plan], given: Circumstances, findings: Findings) -> None:
    asking = [plan for plan in plans if plan.asks_helper]
    if given.helper or not asking:
        return
    if not all(plan.mounts_folder for plan in asking):
        findings.warn("helper-off")
    elif find_volume(pod).exists:
        # Whoever mounts something else there has a helper of his own; the node's folder is empty.
        findings.warn("folder-empty")
