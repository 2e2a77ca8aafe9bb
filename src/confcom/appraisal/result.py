"""The attestation result: one object that says everything about one piece of evidence, for people and machines."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, ClassVar

from confcom.appraisal.appraise import Appraisal, appraise
from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.peer import certificate_facts, check_binding, check_certificate
from confcom.appraisal.policy import Policy, checked_policy
from confcom.appraisal.quote import STEPS, QuoteVerifier, VerifiedQuote
from confcom.appraisal.tcb import TDX_MODULE_STEP, TcbEvaluation
from confcom.errors import (
    BindingError,
    CollateralError,
    CollateralInvalid,
    ConfcomError,
    FormatError,
    VerificationError,
)
from confcom.formats.arguments import checked_bytes, checked_time, checked_type
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import EvidenceFile
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tdx import TdReportBody, TdReportBody10, td_base
from confcom.pki.chain import TrustRoots
from confcom.pki.proof import PROOF, Proof, sealed

CUSTOM_CLAIMS_STEP = "custom-claims-binding"
NOT_AUTHENTIC = FormatError, VerificationError, CollateralInvalid
"""What the verification of evidence raises."""


@sealed
@dataclass(frozen=True, slots=True, repr=False)
class AttestationResult(Proof):
    """The outcome of judging evidence; `verified` and `appraisal` are None when it did not get that far.

    A result is true when the evidence is accepted.
    """

    made_by: ClassVar[str] = "judge"

    verdict: Verdict
    error: ConfcomError | None
    evidence: EvidenceFile | None
    appraisal: Appraisal | None
    further: tuple[Check, ...]
    source: str
    certificate: AttestedCertificate | None = None
    proof: InitVar[object] = None

    def __bool__(self) -> bool:
        return self.verdict is Verdict.ACCEPTED

    def __repr__(self) -> str:
        return f"<AttestationResult {self.verdict}{f': {self.error.code}' if self.error else ''}>"

    def require(self) -> VerifiedQuote:
        """The verified quote, or the error that says why it is not accepted."""
        if self.error is not None or self.appraisal is None:
            raise self.error or ConfcomError("nothing was judged")
        return self.appraisal.require()

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check in its order: those of verification, then `further`, those of claims and policy."""
        return (self.verified.checks if self.verified else ()) + self.further

    @property
    def verified(self) -> VerifiedQuote | None:
        """The authentic quote; None when it is not."""
        return None if self.appraisal is None else self.appraisal.verified

    def under(self, update: str) -> dict[str, Any]:
        """The verdict under the set `update`, for people and programs who judge under several sets."""
        kept = ("verdict", "tcb_status", "tcb_date", "advisory_ids", "tcb_evaluation_data_number", "error")
        found = self.as_dict()
        return {"update": update} | {name: found[name] for name in kept}

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `confcom verify --json`. What was not proven is null."""
        quote = self.evidence.quote if self.evidence else None
        return {
            "verdict": self.verdict.value,
            "error": self.error.as_dict() if self.error else None,
            "simulated": None,
            "tee": quote.tee.name.lower() if quote else None,
            "quote_version": quote.header.version if quote else None,
            "tcb_status": None,
            "tcb_date": None,
            "advisory_ids": [],
            "launch_tcb": None,
            "current_tcb": None,
            "tcb_evaluation_data_number": None,
            "fmspc": None,
            "identity": None,
            "report_data": None,
            "collateral": {"earliest_issue": None, "earliest_expiration": None, "source": self.source},
            **(_proven(self.verified, self.source) if self.verified else {}),
            **({"certificate": certificate_facts(self.certificate)} if self.certificate else {}),
            "checks": [
                {"id": c.id, "ok": c.ok, "expected": c.expected, "found": c.found, "advice": c.advice}
                for c in self.checks
            ],
        }


def accept_quote(
    evidence: bytes,
    collateral: Collateral,
    policy: Policy,
    *,
    now: datetime,
    verifier: QuoteVerifier | None = None,
    grace: timedelta = timedelta(),
) -> VerifiedQuote:
    """Verify and appraise evidence in any form in one call: returns what is accepted, raises for everything else.

    `policy` says who is expected; the safe defaults apply where it does not replace them (`with_safe_defaults`).
    Without a `verifier`, only Intel's root is trusted; a service keeps one, which remembers platforms.

    Raises `FormatError` (malformed), `VerificationError` (not authentic), `PolicyError` (authentic, not acceptable),
    `StaleCollateralError` and `CollateralError` (not decided), all of them `ConfcomError` with an `advice()`.
    """
    verifier = QuoteVerifier(TrustRoots.intel()) if verifier is None else verifier
    return judge(evidence, collateral, verifier=verifier, policy=policy, now=now, grace=grace).require()


def judge(
    evidence: bytes | EvidenceFile | AttestedCertificate,
    collateral: Collateral,
    *,
    verifier: QuoteVerifier,
    policy: Policy,
    now: datetime,
    grace: timedelta = timedelta(),
) -> AttestationResult:
    """Verify and appraise evidence in any form; what is wrong with it becomes part of the result, not an exception.

    The evidence of a certificate must be for its key.
    """
    certificate = evidence if isinstance(evidence, AttestedCertificate) else None
    file = certificate.evidence if certificate else evidence if isinstance(evidence, EvidenceFile) else None
    checked_type(collateral, Collateral, "collateral", "; load_bundle(path) reads one")
    checked_policy(policy)
    checked_time(now, "now")
    try:
        if file is None:
            file = read_evidence(checked_bytes(evidence, "evidence"))
        own = check_certificate(certificate, now) if certificate else ()
        verified = verifier.verify(file.quote, collateral, now=now, any_tcb=True)
        claims = own + (check_binding(certificate) if certificate else check_custom_claims(file))
    except NOT_AUTHENTIC as error:
        return failed(error, evidence=file, source=collateral.source, certificate=certificate)
    return result_of(appraise(verified, policy, grace=grace), file, claims, collateral.source, certificate)


def result_of(
    appraisal: Appraisal,
    evidence: EvidenceFile,
    claims: tuple[Check, ...],
    source: str,
    certificate: AttestedCertificate | None = None,
) -> AttestationResult:
    """The result of an appraisal; `claims` are the checks of what came beside the quote, `source` as `Collateral`'s."""
    return AttestationResult(
        verdict=appraisal.verdict,
        error=appraisal.error(),
        evidence=evidence,
        appraisal=appraisal,
        further=claims + appraisal.findings,
        source=source,
        certificate=certificate,
        proof=PROOF,
    )


def read_evidence(data: bytes) -> EvidenceFile:
    """Read evidence in any form; a `FormatError` says what the input is instead, and what to do with it."""
    try:
        return EvidenceFile.parse(data)
    except FormatError as error:
        # Here, because it knows every format, and most callers have evidence.
        from confcom.appraisal.inspection.explain import other_than_evidence

        raise other_than_evidence(data, error) or error from None


def failed(
    error: ConfcomError,
    *,
    evidence: EvidenceFile | None = None,
    source: str = "",
    certificate: AttestedCertificate | None = None,
) -> AttestationResult:
    """The result of an error before or during verification; lists the steps that were passed before it."""
    verdict = Verdict.UNDECIDED if isinstance(error, CollateralError) else Verdict.INVALID
    checks: tuple[Check, ...] = ()
    if isinstance(error, (VerificationError, CollateralInvalid)) and error.step:
        passed = STEPS[: STEPS.index(error.step)] if error.step in STEPS else ()
        if evidence is None or evidence.quote.tee is not TeeType.TDX:
            passed = tuple(step for step in passed if step != TDX_MODULE_STEP)
        wrong = Check(error.step, ok=False, expected=error.expected, found=error.found, advice=error.advice())
        checks = (*(Check(step, ok=True, expected="holds", found="holds") for step in passed), wrong)
    return AttestationResult(verdict, error, evidence, None, checks, source, certificate, proof=PROOF)


def check_custom_claims(file: EvidenceFile) -> tuple[Check, ...]:
    """The custom claims of Open Enclave evidence are those that the report data names, else a `BindingError`."""
    if file.custom_claims is None:
        return ()
    expected, found = sha256(file.custom_claims).digest(), file.quote.report_data[:32]
    if expected != found:
        raise BindingError(
            "the custom claims are not the ones that the enclave vouched for",
            step=CUSTOM_CLAIMS_STEP,
            expected=expected.hex(),
            found=found.hex(),
        )
    return (Check(CUSTOM_CLAIMS_STEP, ok=True, expected=expected.hex(), found=found.hex()),)


def _proven(verified: VerifiedQuote, source: str) -> dict[str, Any]:
    tcb, collateral = verified.tcb, verified.collateral
    return {
        "simulated": verified.simulated,
        **_tcb(tcb),
        "launch_tcb": _tcb(tcb.launch) if tcb.launch else None,
        "current_tcb": _tcb(tcb.current) if tcb.current else None,
        "tcb_evaluation_data_number": verified.tcb_evaluation_data_number,
        "fmspc": verified.pck.fmspc.hex(),
        "identity": identity(verified.quote.body),
        "report_data": verified.report_data.hex(),
        "collateral": {
            "earliest_issue": timestamp(collateral.earliest_issue),
            "earliest_expiration": timestamp(collateral.earliest_expiration),
            "source": source,
        },
    }


def _tcb(tcb: TcbEvaluation) -> dict[str, Any]:
    return {
        "tcb_status": tcb.status.value if tcb.status else None,
        "tcb_date": timestamp(tcb.tcb_date),
        "advisory_ids": list(tcb.advisory_ids),
    }


def identity(body: ReportBody | TdReportBody) -> dict[str, Any]:
    """Who an enclave or TD is, in the words of the SGX and TDX documentation; bytes as hex."""
    return _sgx_identity(body) if isinstance(body, ReportBody) else _tdx_identity(body)


def timestamp(time: datetime | None) -> str | None:
    """RFC 3339 in UTC, to the second."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else None


def _sgx_identity(body: ReportBody) -> dict[str, Any]:
    return {
        "mr_enclave": body.mr_enclave.hex(),
        "mr_signer": body.mr_signer.hex(),
        "isv_prod_id": body.isv_prod_id,
        "isv_svn": body.isv_svn,
        "debug": body.attributes.debug,
        "attributes": bytes(body.attributes).hex(),
        "attribute_flags": list(body.attributes.flag_names),
        "misc_select": f"{body.misc_select:08x}",
        "cpu_svn": body.cpu_svn.hex(),
        "config_id": body.config_id.hex(),
        "config_svn": body.config_svn,
        "isv_ext_prod_id": body.isv_ext_prod_id.hex(),
        "isv_family_id": body.isv_family_id.hex(),
    }


def _tdx_identity(body: TdReportBody) -> dict[str, Any]:
    td = td_base(body)
    names: tuple[str, ...] = (
        "mr_td",
        "mr_config_id",
        "mr_owner",
        "mr_owner_config",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
    )
    names += ("mr_seam", "mr_signer_seam", "seam_attributes", "tee_tcb_svn")
    measurements: dict[str, Any] = {name: getattr(td, name).hex() for name in names}
    measurements |= {
        "debug": td.debug,
        "td_attributes": td.td_attributes.to_bytes(8, "little").hex(),
        "xfam": td.xfam.to_bytes(8, "little").hex(),
    }
    if not isinstance(body, TdReportBody10):
        measurements |= {"tee_tcb_svn2": body.tee_tcb_svn2.hex(), "mr_service_td": body.mr_service_td.hex()}
    return measurements
