"""JSON schemas of what commands print with `-o json`: written into docs/reference/schemas by `./dev generate`.

A key that is not named here fails validation. `dict[str, Any]` stands where keys follow the input: the fields of an
inspection, the claims of a token, the patch of a pod.
"""

from __future__ import annotations

import json
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, get_type_hints

import msgspec

from confcom.addon.overview import Overview
from confcom.addon.why import Explanation
from confcom.appraisal.findings import Verdict
from confcom.doctor.checks import Level, Role
from confcom.platforms.quoting import QuoteMode

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference" / "schemas"

Change: TypeAlias = Literal["accepted", "denied", "refused"]


class Error(TypedDict):
    """Why a command failed: docs/reference/errors.md has the codes."""

    code: str
    message: str
    advice: str
    structure: NotRequired[str]
    field: NotRequired[str]
    offset: NotRequired[str]
    document: NotRequired[str]


class Failure(TypedDict):
    """What a command prints in the place of its result, where there is none."""

    error: Error


class Check(TypedDict):
    """One question and its answer."""

    id: str
    ok: bool
    expected: str
    found: str
    advice: str


class Tcb(TypedDict):
    """A TCB status, the date of its level, and the advisories that are open on it."""

    tcb_status: str | None
    tcb_date: str | None
    advisory_ids: list[str]


class SgxIdentity(TypedDict):
    """Who an enclave is; bytes as hexadecimal digits."""

    mr_enclave: str
    mr_signer: str
    isv_prod_id: int
    isv_svn: int
    debug: bool
    attributes: str
    attribute_flags: list[str]
    misc_select: str
    cpu_svn: str
    config_id: str
    config_svn: int
    isv_ext_prod_id: str
    isv_family_id: str


class TdxIdentity(TypedDict):
    """Who a TD is; bytes as hexadecimal digits."""

    mr_td: str
    mr_config_id: str
    mr_owner: str
    mr_owner_config: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str
    mr_seam: str
    mr_signer_seam: str
    seam_attributes: str
    tee_tcb_svn: str
    debug: bool
    td_attributes: str
    xfam: str
    tee_tcb_svn2: NotRequired[str]
    mr_service_td: NotRequired[str]


class CollateralDates(TypedDict):
    """Between which times the collateral can judge, and where it came from."""

    earliest_issue: str | None
    earliest_expiration: str | None
    source: str


class Certificate(TypedDict):
    """An attested certificate, and the rule that binds its key."""

    format: str
    binding: str | None
    public_key_sha256: str
    not_before: str
    not_after: str
    nonce: str | None


class UnderSet(TypedDict):
    """The verdict under one set of collateral."""

    update: str
    verdict: Verdict
    tcb_status: str | None
    tcb_date: str | None
    advisory_ids: list[str]
    tcb_evaluation_data_number: int | None
    error: Error | None


class Verify(TypedDict):
    """`confcom verify`: docs/reference/verify-json.md has the meaning of each key."""

    verdict: Verdict | None
    error: Error | None
    simulated: bool | None
    tee: Literal["sgx", "tdx"] | None
    quote_version: Literal[3, 4, 5] | None
    tcb_status: str | None
    tcb_date: str | None
    advisory_ids: list[str]
    launch_tcb: Tcb | None
    current_tcb: Tcb | None
    tcb_evaluation_data_number: int | None
    fmspc: str | None
    identity: dict[str, Any] | None
    report_data: str | None
    collateral: CollateralDates
    certificate: NotRequired[Certificate]
    checks: list[Check]
    sets: NotRequired[list[UnderSet]]


class Inspect(TypedDict):
    """`confcom inspect`, `confcom token inspect`: what an input is. `fields` are those of its kind."""

    kind: str | None
    verified: Literal[False]
    encoding: NotRequired[str]
    size: NotRequired[int]
    fields: dict[str, Any]
    error: NotRequired[Error]


class Defect(TypedDict):
    """A departure from Azure's grammar, with its repair if there is one; of a policy file the message alone."""

    symbol: NotRequired[str]
    line: NotRequired[int]
    column: NotRequired[int]
    rule: NotRequired[str]
    message: str
    replacement: NotRequired[str]


class PolicyLint(TypedDict):
    """`confcom policy lint`."""

    ok: bool
    defects: list[Defect]


class Claim(TypedDict):
    """A claim that a rule issued."""

    type: str
    value: bool | int | str


class Rule(TypedDict):
    """What a rule of a policy did: how many claims each condition matched, and whether it applied."""

    section: str
    line: int
    rule: str
    matched: list[int]
    applied: bool
    claims: NotRequired[list[Claim]]
    fault: NotRequired[str]


class Outcome(TypedDict):
    """What a policy decides on one piece of evidence, by its file or by its place in the audit record."""

    evidence: NotRequired[str]
    id: NotRequired[int]
    at: NotRequired[str]
    evidence_hash: NotRequired[str]
    before: Change
    after: Change
    reason: str
    claims: dict[str, Any]
    trace: NotRequired[list[Rule]]


class PolicyTry(TypedDict):
    """`confcom policy try`."""

    policy_hash: str
    judged: int
    changed: int
    outcomes: list[Outcome]


class AddonEntry(TypedDict):
    """The add-on in a cluster's profile; settings are text, as `az` has them."""

    config: dict[str, str | None]
    enabled: bool
    identity: None


class AddonChange(TypedDict):
    """`confcom addon enable`, `update`, `disable`."""

    addonProfiles: dict[str, AddonEntry]


class AddonShow(TypedDict):
    """`confcom addon show`; `ready` has SERVING/WANTED pods of each workload."""

    name: str
    api_key: str
    config: dict[str, str | None]
    identity: None
    version: str
    ready: dict[str, str]
    waiting: list[str]


class AddonListed(TypedDict):
    """An add-on of this cluster."""

    name: str
    api_key: str
    enabled: bool


class AddonAvailable(TypedDict):
    """An add-on that can be enabled."""

    name: str
    description: str


class Finding(TypedDict):
    """Why a pod is refused, or what it is warned of: docs/reference/admission.md has the codes."""

    code: str
    sentence: str


class CheckedPod(TypedDict):
    """A pod of a manifest; `patch` is the change of the webhook (RFC 6902)."""

    file: str
    kind: str
    name: str
    allowed: bool
    epc_mib: int
    refusals: list[Finding]
    warnings: list[Finding]
    patch: list[dict[str, Any]]


class Fetched(TypedDict):
    """A document that was fetched: its number and the end of its validity."""

    document: str
    number: int | None
    until: str


class CollateralFetch(TypedDict):
    """`confcom collateral fetch`."""

    source: str
    documents: list[Fetched]
    new_versions: int
    errors: list[Error]


class StoredDocument(TypedDict):
    """A document in force in a store of collateral."""

    kind: str
    tee: str | None
    fmspc: str | None
    ca: str | None
    update: str | None
    number: int | None
    issue_date: str
    expires: str
    seconds_left: int
    last_seen: str


class MissingDocument(TypedDict):
    """A document that the store lacks."""

    kind: str
    tee: str | None
    fmspc: str | None
    ca: str | None
    update: str | None
    for_fmspc: str | None


class Standing(TypedDict):
    """The TCB status of a platform under one set."""

    number: int | None
    tcb_status: str | None


class ServedStanding(Standing):
    """The same under the set that clients of a group get."""

    state: Literal["current", "falls_behind", "out_of_date"]


class Shortfall(TypedDict):
    """What a platform lacks for the coming TCB levels."""

    component: str
    found: int
    needed: int
    advice: str


class Platform(TypedDict):
    """A platform that the store has seen."""

    id: str
    tee: str
    fmspc: str
    ca: str
    last_seen: str
    standard: Standing
    early: Standing
    served: dict[str, ServedStanding]
    falls_behind: bool
    to_restart: bool
    promotion_expected: str | None
    shortfall: Shortfall | None


class CollateralStatus(TypedDict):
    """`confcom collateral status`."""

    now: str
    min_validity_seconds: int
    sets: dict[str, str]
    expiring: list[StoredDocument]
    not_yet_valid: list[StoredDocument]
    clock_problem: str | None
    missing: list[MissingDocument]
    falling_behind: list[str]
    to_restart: list[str]
    documents: list[StoredDocument]
    platforms: list[Platform]


class TokenVerify(TypedDict):
    """`confcom token verify`: claims and key of a token that is accepted, or the error."""

    accepted: bool
    claims: NotRequired[dict[str, Any]]
    key: NotRequired[str | None]
    key_attested_by: NotRequired[dict[str, Any]]
    error: NotRequired[Error]


class DoctorCheck(TypedDict):
    """What was found, and what to do."""

    id: str
    status: Level
    found: str
    advice: str


class Doctor(TypedDict):
    """`confcom doctor`."""

    ok: bool
    headline: str
    simulated: bool
    role: Role
    mode: QuoteMode
    checks: list[DoctorCheck]


class AuditRecord(TypedDict):
    """A line of `confcom attestation audit`; `claims` is JSON in text, empty where no policy decided."""

    id: int
    at: str
    kind: str
    caller: str
    verdict: str
    reason: str
    policy_hash: str
    evidence_hash: str
    claims: str


Why = TypedDict("Why", {"ok": bool, "headline": str} | get_type_hints(Explanation))  # type: ignore[misc]

OUTPUTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "verify": (Verify, ("verify",)),
    "inspect": (Inspect, ("inspect", "token inspect")),
    "policy-lint": (PolicyLint, ("policy lint",)),
    "policy-try": (PolicyTry, ("policy try",)),
    "addon-change": (AddonChange, ("addon enable", "addon update", "addon disable")),
    "addon-show": (AddonShow, ("addon show",)),
    "addon-list": (list[AddonListed], ("addon list",)),
    "addon-list-available": (list[AddonAvailable], ("addon list-available",)),
    "check-pods": (list[CheckedPod], ("check-pods",)),
    "top": (Overview, ("top",)),
    "why": (Why, ("why",)),
    "collateral-fetch": (CollateralFetch, ("collateral fetch",)),
    "collateral-status": (CollateralStatus, ("collateral status",)),
    "token-verify": (TokenVerify, ("token verify",)),
    "doctor": (Doctor, ("doctor",)),
    "attestation-audit": (AuditRecord, ("attestation audit",)),
    "failure": (Failure, ()),
}
"""Name of a schema to the shape of the output, and the commands that print it."""


def schema(shape: Any) -> dict[str, Any]:  # noqa: ANN401 - any type that msgspec describes
    """The JSON schema of a shape; objects have all keys but those that are `NotRequired`, and no others."""
    found = msgspec.json.schema(shape)
    if shape is Verify:
        shapes = msgspec.json.schema(list[SgxIdentity]), msgspec.json.schema(list[TdxIdentity])
        for one in shapes:
            found["$defs"] |= one["$defs"]
        either = [{"$ref": "#/$defs/SgxIdentity"}, {"$ref": "#/$defs/TdxIdentity"}, {"type": "null"}]
        found["$defs"]["Verify"]["properties"]["identity"] = {"anyOf": either}
    for each in found.get("$defs", {}).values():
        if "description" in each:
            each["description"] = cleandoc(each["description"])
        if "properties" in each:
            printed = {name for name, value in each["properties"].items() if "default" in value}
            each["required"] = [name for name in each["properties"] if name in {*each["required"], *printed}]
            each["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def schema_files() -> dict[Path, bytes]:
    """Path to content of every schema."""
    return {
        FOLDER / f"{name}.schema.json": (json.dumps(schema(shape), indent=2) + "\n").encode()
        for name, (shape, _) in OUTPUTS.items()
    }
