"""Explains one pod: its requests, what the webhook changed, why it waits, its devices, its quotes, its use of EPC.

`gather` reads what the cluster says of it (its spec, events, owner, add-on, and the EPC and quotes of its node) with
the rights of the user; whatever may not be read is named in `Facts.missing`. `explain` is pure: one `Check` per
question about `Facts`, in the order in which things depend on each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from confcom.addon.overview import EnclaveLine, NodeLine, Overview, age, overview
from confcom.addon.plan import STATE_REF
from confcom.addon.rollout import problem_of
from confcom.admission.decision import AdmissionContext, decide_pod, find_pods
from confcom.admission.epc_amounts import read_request
from confcom.admission.findings import Findings
from confcom.admission.pod_json import Container, Grants, Json, containers_of, json_object
from confcom.admission.quote_modes import OUT_OF_PROC, mode_of, mounts_folder, read_annotations, sets_variable
from confcom.appraisal.findings import Check, finding, passed
from confcom.cluster.client import OWNER_KINDS, Object, Ref
from confcom.cluster.nodes import ClusterEpc
from confcom.errors import ClusterError, ClusterRefused, ConfigError, FormatError
from confcom.manifests.addon import AddonState, parse_state
from confcom.manifests.objects import NAMESPACE
from confcom.protocols.admission import SGX_RESOURCES
from confcom.protocols.aesm import FOLDER, VARIABLE
from confcom.protocols.epc import CANONICAL, ENCLAVE, HELPER, PROVISION, EpcPod, in_mib, parse_pod

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


MAX_SHOWN = 5
"""Events, nodes or enclaves that a sentence names."""
_OVER = ("EpcOverLimit", "EpcNotRequested")
"""Reasons of the exporter's events."""
_MISTAKES = ("unknown-resource", "variable-without-epc", "epc-uncounted", "socket-mounted", "folder-empty")
"""Warnings of the webhook about pods that will not work; devices by hand and the helper have checks of their own."""
_ENABLE = "Enable it: confcom addon enable --enable-sgxquotehelper --enable-metrics"
_HELPER_OFF = "Enable it: confcom addon update --enable-sgxquotehelper"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer: a headline, the checks, and the nodes if the pod waits for one."""

    namespace: str
    name: str
    node: str
    phase: str
    uses_sgx: bool
    checks: tuple[Check, ...]
    nodes: tuple[NodeLine, ...] = ()
    enclaves: tuple[EnclaveLine, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Check, ...]:
        """What must change."""
        return tuple(check for check in self.checks if not check.ok)

    def as_dict(self) -> dict[str, Any]:
        """For machines: sizes in bytes; `ok` if there are no problems."""
        return {"ok": not self.problems, "headline": self.headline, **msgspec.to_builtins(self)}

    @property
    def headline(self) -> str:
        """One line: the pod, its phase, and the first problem."""
        subject = f"{self.namespace}/{self.name} is {self.phase}"
        if self.problems:
            return f"{subject}; {self.problems[0].id}: {self.problems[0].found}"
        return f"{subject}; {'no problems' if self.uses_sgx else 'it uses no SGX'}"


def explain(facts: Facts, now: datetime) -> Explanation:
    """Answer every question about the pod, as of `now`."""
    subject = _Subject(facts, now)
    waits = subject.uses_sgx and not facts.epc.node and not facts.epc.finished
    return Explanation(
        *(facts.epc.namespace, facts.epc.name, facts.epc.node, subject.phase, subject.uses_sgx),
        checks=tuple(subject.checks()),
        nodes=facts.overview.nodes if waits else (),
        enclaves=subject.enclaves,
        missing=facts.missing,
    )


class _Subject:
    """A pod with what follows from its spec."""

    def __init__(self, facts: Facts, now: datetime) -> None:
        self.facts, self.now = facts, now
        self.pod, self.epc, self.overview = facts.pod, facts.epc, facts.overview
        self.containers = list(containers_of(self.pod, "initContainers", "containers"))
        self.config = None if facts.addon is None else facts.addon.config
        context = AdmissionContext(
            namespace=self.epc.namespace,
            grants=Grants() if self.config is None else Grants(frozenset(self.config.provision_grants)),
            helper=self.config is None or self.config.quote_helper,
        )
        self.decision = decide_pod(self.pod, context)
        unread = Findings()
        annotated = read_annotations(self.pod, [one.name for one in self.containers], unread)
        chosen = {one.name: mode_of(one, read_request(one, unread), annotated, unread) for one in self.containers}
        self.choices = {name: choice for name, choice in chosen.items() if choice is not None}
        self.asks_helper = any(choice.mode == OUT_OF_PROC for choice in self.choices.values())
        self.limits = {one.name: _sgx_amounts(one) for one in self.containers}
        place = (self.epc.namespace, self.epc.name)
        self.line = next((one for one in self.overview.pods if (one.namespace, one.name) == place), None)
        self.node = next((one for one in self.overview.nodes if one.name == self.epc.node), None)
        known_as = (place, ("", f"pod {self.epc.uid}"))
        self.enclaves = tuple(one for one in self.overview.enclaves if (one.namespace, one.name) in known_as)
        ruled = self.decision.warnings or self.decision.refusals
        self.uses_sgx = bool(any(self.limits.values()) or self.choices or ruled or self.line)
        self.where = f", on node {self.epc.node}" if self.epc.node else ""
        deleted, status = self.pod["metadata"].get("deletionTimestamp"), self.pod.get("status") or {}
        self.phase = "Terminating" if deleted else str(status.get("phase") or "Pending")

    def checks(self) -> Iterator[Check]:
        yield from self._addon() if self.uses_sgx else ()
        yield self._requests()
        if self.uses_sgx:
            yield from self._translated()
            yield from self._admission()
        yield from self._scheduling()
        yield self._runs()
        if self.uses_sgx:
            yield self._devices()
            for answers in (self._mode, self._helper, self._quotes, self._use):
                yield from answers()

    def _addon(self) -> Iterator[Check]:
        if self.facts.addon_known:
            addon = self.facts.addon
            found = f"enabled, version {addon.version}" if addon and addon.enabled else "not enabled in this cluster"
            yield finding("addon", addon is not None and addon.enabled, "enabled", found, _ENABLE)

    def _requests(self) -> Check:
        parts = [f"{one.name} {in_mib(one.requested)}" for one in self.epc.containers if one.requested]
        found = f"{in_mib(self.epc.requested)} of EPC on one node ({', '.join(parts)})" if parts else "no EPC"
        claims = sorted({name for one in self.epc.containers for name in one.claims})
        return passed("requests", "", found + (f"; claims {', '.join(claims)}" if claims else ""))

    def _translated(self) -> Iterator[Check]:
        """What the webhook changed, where it is known what its author wrote."""
        if self.facts.written is None:
            return
        try:
            before = {one.name: one for one in containers_of(self.facts.written, "initContainers", "containers")}
            found = [text for one in self.containers if (text := _change(before.get(one.name), one))]
        except FormatError:
            return
        shown = "; ".join(found) or "nothing: it is as it was written"
        yield passed("translated", "", f"{shown} (compared with {self.facts.written_in})")

    def _admission(self) -> Iterator[Check]:
        """Whether the webhook has completed the pod: it changes nothing of a pod that it has seen."""
        if self.epc.namespace == NAMESPACE:
            return
        wrong = (*self.decision.refusals, *(one for one in self.decision.warnings if one.code in _MISTAKES))
        if wrong:
            found = " ".join(one.sentence for one in wrong)
            yield _problem("admission", "accepted", found, "Change the pod as it says.")
        elif self.decision.pod != self.pod:
            yield _problem(
                "admission",
                "completed by the webhook",
                "the SGX webhook did not complete this pod: it lacks devices or variables",
                "Delete it and create it again while the webhook runs (confcom addon show). A pod made before "
                "the add-on was enabled, or in a namespace that the webhook does not serve, stays as it is.",
            )

    def _scheduling(self) -> Iterator[Check]:
        if self.epc.finished or self.epc.node:
            return
        conditions = (self.pod.get("status") or {}).get("conditions") or []
        said: Mapping[str, Any] = next((one for one in conditions if one.get("type") == "PodScheduled"), {})
        message = str(said.get("message") or _latest(self.facts.events, "FailedScheduling") or "")
        short = self._room()
        found = " ".join((short or message or "the scheduler has not looked at it yet").split())
        if short and message:
            found += f" (the scheduler: {' '.join(message.split())})"
        yield _problem("scheduling", "a node", found, self._way_out(message))

    def _room(self) -> str:
        """What nodes lack for the pod's EPC, empty if one has room or it is not known."""
        wanted, nodes = self.epc.requested, self.overview.nodes
        with_epc = [one for one in nodes if one.allocatable]
        if not wanted or any(one.free is None for one in with_epc):
            return ""
        if not with_epc:
            unread = any(clause.startswith("cannot list the nodes") for clause in self.facts.missing)
            return "" if unread else "no node publishes EPC"
        best = max(with_epc, key=lambda one: one.free or 0)
        if (best.free or 0) >= wanted:
            return ""
        free = f"{in_mib(best.free or 0)} free of {in_mib(best.offered or 0)}"
        return f"it needs {in_mib(wanted)} of EPC, and no node has more free than {best.name}: {free}"

    def _way_out(self, message: str) -> str:
        wanted = self.epc.requested
        sizes = [one.offered for one in self.overview.nodes if one.offered]
        if HELPER in message or (self.config and not self.config.quote_helper and self.asks_helper):
            return _HELPER_OFF
        if wanted and self.overview.nodes and not sizes:
            return "Label the SGX nodes: kubectl label node NAME confcom.dev/sgx=true. Then: confcom addon show"
        if wanted and sizes and wanted > max(sizes):
            return f"Lower the limits to what one node has, {in_mib(max(sizes))} at most, or add a larger node."
        if self._room():
            return (
                "Wait until other pods end, end some (confcom top --sort requested), lower the limits, or add an SGX "
                "node. It is scheduled by itself as soon as there is room."
            )
        return "Change what the scheduler names: taints, selectors, or other resources of the nodes."

    def _runs(self) -> Check:
        problem = problem_of(self.pod, self.facts.events)
        if self.phase == "Succeeded" or problem is None or (not self.epc.node and self.phase == "Pending"):
            return passed("runs", "", f"{self.phase}{self.where}{self._age}")
        words = ": ".join(word for word in (problem.reason, problem.message) if word)
        waits = problem.reason in ("NotReady", "Pending")
        advice = f"See kubectl describe pod {self.epc.name} -n {self.epc.namespace}, and its log."
        if problem.reason == "UnexpectedAdmissionError":
            advice = "The kubelet had no device for it, as while its plugin is replaced: delete the pod."
        elif "aesmd" in problem.message and problem.reason == "FailedMount":
            advice = _HELPER_OFF
        return finding("runs", waits, "running", f"{words}{self.where}{self._age}", advice)

    def _devices(self) -> Check:
        by_hand = [one.sentence for one in self.decision.warnings if one.code.endswith("by-hand")]
        privileged = [one.sentence for one in self.decision.warnings if one.code == "privileged"]
        if found := by_hand + privileged:
            advice = "Remove it from the pod, and state a limit of EPC instead."
            return _problem("devices", "from the device plugin", " ".join(found), advice)
        names = {ENCLAVE: "enclave", PROVISION: "provision"}
        given = [
            f"{name}: {' and '.join(shown)}"
            for name, amounts in self.limits.items()
            if (shown := [word for resource, word in names.items() if resource in amounts])
        ]
        return passed("devices", "", "; ".join(given) or "none by resources")

    def _mode(self) -> Iterator[Check]:
        found = [f"{name}: {choice.mode} ({choice.source})" for name, choice in self.choices.items()]
        free = [name for name, amounts in self.limits.items() if CANONICAL in amounts and name not in self.choices]
        found += [f"{name}: nothing selects one, so in-proc unless the program asks the helper" for name in free]
        if found:
            yield passed("mode", "", "; ".join(found))

    def _helper(self) -> Iterator[Check]:
        if not self.asks_helper:
            return
        if self.config is not None and not self.config.quote_helper:
            yield _problem("helper", "a quote helper", "it is not enabled", _HELPER_OFF)
            return
        node = self.node
        if node is None or self.epc.finished:
            return
        here = f"on node {self.epc.node}"
        advice = f"kubectl -n {NAMESPACE} get pods -o wide; confcom addon show; its log says more."
        if node.quotes is None:
            # What could not be read is no statement about the helper.
            if not any(clause.startswith("cannot") for clause in self.overview.missing):
                yield _problem("helper", "a quote helper", f"none answers {here}", advice)
        else:
            found = f"{'fails its self-test' if node.self_test_ok is False else 'serves'} {here}"
            yield finding("helper", node.self_test_ok is not False, "serves", found, advice)

    def _quotes(self) -> Iterator[Check]:
        node = self.node
        if node is not None and node.quotes is not None and (self.asks_helper or self.enclaves):
            yield self._had_quotes()
        if node is not None and node.tcb_status is not None:
            bad = node.tcb_status.startswith("OutOfDate") or node.tcb_status in ("Revoked", "NotSupported")
            advice = "Update BIOS and microcode of the node, then let it fetch a new PCK certificate."
            found = f"{node.tcb_status}, of quotes made on node {node.name}"
            yield finding("tcb", not bad, "a TCB that verifiers accept", found, advice)

    def _had_quotes(self) -> Check:
        if not self.enclaves:
            return passed("quotes", "", "none since the quote helper started")
        latest = sorted(self.enclaves, key=lambda one: -(one.last or 0))
        shown = [self._enclave(one) for one in latest[:MAX_SHOWN]]
        if len(latest) > MAX_SHOWN:
            shown.append(f"and {len(latest) - MAX_SHOWN} enclaves more")
        unexpected = any(one.signer_expected is False for one in latest)
        advice = "If it is to run here, add its MRSIGNER: confcom addon update --expected-signers HEX,…"
        return finding("quotes", not unexpected, "of signers that are expected", "; ".join(shown), advice)

    def _enclave(self, line: EnclaveLine) -> str:
        last = "" if line.last is None else f", the last {age(self.now.timestamp() - line.last)} ago"
        if not line.mr_signer:
            return f"{line.quotes} of further enclaves{last}"
        marks = ("; a debug enclave: the host reads its memory" if line.debug else "") + (
            "; its signer is none of those expected" if line.signer_expected is False else ""
        )
        return (
            f"{line.quotes} of MRENCLAVE {line.mr_enclave[:16]}…, MRSIGNER {line.mr_signer[:16]}…, product "
            f"{line.isv_prod_id}, SVN {line.isv_svn}{last}{marks}"
        )

    def _use(self) -> Iterator[Check]:
        """What it uses of EPC, against what it requested, now and in the exporter's events."""
        line = self.line
        episodes = [one for one in self.facts.events if one.get("reason") in _OVER]
        if line is None and not episodes:
            return
        found = []
        if line is not None and line.mapped is not None:
            used = line.mapped if line.in_use is None else line.in_use
            found.append(f"{in_mib(used)} {'mapped' if line.in_use is None else 'in use'} of {in_mib(line.requested)}")
        if line is not None and line.over:
            found.append(f"over now: {', '.join(line.over)}")
        for one in episodes[-MAX_SHOWN:]:
            times = (one.get("series") or {}).get("count") or one.get("count") or 1
            found.append(f"{one['reason']} {times} time{'s' if times > 1 else ''}, {self._since(_time_of(one))} ago")
        if not found:
            return
        advice = _latest(episodes, *_OVER) or f"Raise the limit {CANONICAL} to what it has mapped."
        yield finding("use", not (line is not None and line.over), "within the limits", "; ".join(found), advice)

    @property
    def _age(self) -> str:
        made = self._since(str(self.pod["metadata"].get("creationTimestamp") or ""))
        return f", made {made} ago" if made else ""

    def _since(self, time: str) -> str:
        try:
            return age((self.now - datetime.fromisoformat(time)).total_seconds())
        except (ValueError, TypeError):
            return "some time" if time else ""


def _problem(identifier: str, expected: str, found: str, advice: str) -> Check:
    return Check(identifier, ok=False, expected=expected, found=found, advice=advice)


def _sgx_amounts(container: Container) -> Mapping[str, object]:
    resources = json_object(container.body, "resources", container.where)
    stated = {
        name: amount
        for kind in ("requests", "limits")
        for name, amount in json_object(resources, kind, container.where).items()
    }
    return {name: amount for name, amount in stated.items() if name in SGX_RESOURCES}


def _change(before: Container | None, after: Container) -> str:
    """What was made of a container's SGX resources, and what was added for its quotes; empty if nothing."""
    old, new = ({} if one is None else _sgx_amounts(one) for one in (before, after))
    gone = [f"{name}: {amount}" for name, amount in old.items() if str(new.get(name)) != str(amount)]
    made = [f"{name}: {amount}" for name, amount in new.items() if str(old.get(name)) != str(amount)]
    if before is not None and sets_variable(after) and not sets_variable(before):
        made.append(f"variable {VARIABLE}")
    if before is not None and mounts_folder(after) and not mounts_folder(before):
        made.append(f"mount {FOLDER}")
    if gone:
        return f"{after.name}: {', '.join(gone)} became {', '.join(made)}"
    return f"{after.name}: added {', '.join(made)}" if made else ""


def _time_of(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _latest(events: Sequence[Mapping[str, Any]], *reasons: str) -> str:
    found = [str(one.get("message") or "") for one in events if one.get("reason") in reasons]
    return found[-1] if found else ""
