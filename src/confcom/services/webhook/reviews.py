"""Answers an AdmissionReview: parses it, decides on the pod, encodes the response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from confcom.admission.decision import AdmissionContext, Decision, check_count, decide_debug, decide_pod
from confcom.admission.findings import REFUSALS, Finding, Findings
from confcom.errors import FormatError
from confcom.protocols.admission import (
    AdmissionRequest,
    Json,
    Operation,
    allowance,
    count_values,
    difference,
    parse_object,
    parse_review,
    refusal,
)

Task = Literal["mutate", "validate"]
Outcome = Literal["allowed", "patched", "refused"]
MAX_NAMED_PATHS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewEvent:
    """The outcome of a review for log and metrics; of the pod only names and amounts."""

    task: Task
    outcome: Outcome
    uid: str
    namespace: str
    pod: str
    debug: bool
    """Whether ephemeral containers were reviewed."""
    dry_run: bool
    epc: int = 0
    """MiB that the pod takes of one node."""
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: int = 0
    """Operations of the patch."""

    def as_dict(self) -> dict[str, object]:
        """The event for the log."""
        return {name: getattr(self, name) for name in self.__slots__}


def review(data: bytes, task: Task, context_of: Callable[[str], AdmissionContext]) -> tuple[bytes, ReviewEvent]:
    """Answer a review; `context_of` gives the context of a namespace. `FormatError` if it is no AdmissionReview.

    A malformed pod is refused.
    """
    request = parse_review(data)
    pod: Json = {}
    size = Findings()
    check_count("values", count_values(request.object) + count_values(request.old_object), size)
    refused = tuple(size.refusals)
    if not refused:
        try:
            pod = parse_object(request.object)
            decision = _decide(request, pod, context_of(request.namespace))
        except FormatError as error:
            refused = (Finding("malformed-pod", f"{error.message}. {error.advice()}"),)
        except RecursionError:
            refused = (Finding("malformed-pod", "The pod is nested too deeply."),)
    if refused:
        decision = Decision(pod, refused, (), 0)
    changes = difference(pod, decision.pod)
    if task == "validate" and changes and not decision.refusals:
        decision = decision._replace(refusals=(_incomplete(changes),))
    return _answer(request, pod, decision, changes, task)


def _decide(request: AdmissionRequest, pod: Json, context: AdmissionContext) -> Decision:
    if request.sub_resource == "ephemeralcontainers":
        return decide_debug(pod, parse_object(request.old_object), context)
    return decide_pod(pod, context)


def _answer(
    request: AdmissionRequest, pod: Json, decision: Decision, changes: list[Operation], task: Task
) -> tuple[bytes, ReviewEvent]:
    # Both tasks find the same warnings; the client should read them once.
    warnings = [finding.sentence for finding in decision.warnings] if task == "mutate" else []
    outcome: Outcome = "allowed"
    if decision.refusals:
        outcome, changes = "refused", []
        denied = any(finding.code == "provision-not-granted" for finding in decision.refusals)
        answer = refusal(
            request.uid,
            " ".join(finding.sentence for finding in decision.refusals),
            status=403 if denied else 422,
            reason="Forbidden" if denied else "Invalid",
            warnings=warnings,
        )
    else:
        outcome = "patched" if changes else "allowed"
        answer = allowance(request.uid, patch=changes, warnings=warnings)
    return answer, ReviewEvent(
        task=task,
        outcome=outcome,
        uid=request.uid[:64],
        namespace=request.namespace[:253],
        pod=_name(request, pod),
        debug=request.sub_resource == "ephemeralcontainers",
        dry_run=bool(request.dry_run),
        epc=decision.epc,
        refusals=tuple(finding.code for finding in decision.refusals),
        warnings=tuple(finding.code for finding in decision.warnings),
        changes=len(changes),
    )


def _name(request: AdmissionRequest, pod: Json) -> str:
    """The pod's name; of a pod that a controller makes, only the prefix is known yet."""
    metadata: object = pod.get("metadata")
    found = request.name or (metadata.get("generateName") if isinstance(metadata, dict) else "")
    return found[:253] if isinstance(found, str) else ""


def _incomplete(changes: list[Operation]) -> Finding:
    paths = ", ".join(str(change["path"])[:120] for change in changes[:MAX_NAMED_PATHS])
    return Finding("incomplete", REFUSALS["incomplete"].format(paths=paths))
