"""Judges evidence: verifies it, appraises it under a policy, and says in one result what came out and why."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, ClassVar

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Check, Verdict, finding
from confcom.appraisal.peer import (
    PURPOSE_CLAIM,
    PURPOSE_STEP,
    SIGNATURE_STEP,
    binding_of,
    certificate_facts,
    check_age,
    check_binding,
    check_certificate,
    check_nonce,
    check_validity,
    read_attested_certificate,
)
from confcom.appraisal.policy import Policy, checked_identity, checked_policy, with_safe_defaults
from confcom.appraisal.quote import STEPS, QuoteVerifier, VerifiedQuote
from confcom.appraisal.tcb import TDX_MODULE_STEP, TcbEvaluation
from confcom.errors import (
    BindingError,
    CollateralError,
    CollateralInvalid,
    ConfcomError,
    ConfigError,
    FormatError,
    PolicyError,
    StaleCollateralError,
    TcbNotSupportedError,
    TcbRevokedError,
    VerificationError,
)
from confcom.formats.arguments import checked_bytes, checked_time, checked_type
from confcom.formats.attested_certificate import AttestedCertificate, AttestedRequest
from confcom.formats.evidence import EvidenceFile
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody, TdReportBody, TdReportBody10, td_base
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.certificate import check_own_signature
from confcom.pki.chain import TrustRoots
from confcom.pki.proof import PROOF, Proof, sealed

FRESHNESS = "collateral-fresh"
_STALE_ADVICE = StaleCollateralError.default_advice
_OWN_ADVICE = (
    "Let the platform fetch a new PCK certificate and make a new quote, or state the time to judge at with --at."
)
_EARLY_ADVICE = "Check the clock of this machine, or the time given with --at; newer collateral does not help."


@sealed
@dataclass(frozen=True, slots=True, repr=False)
class Appraisal(Proof):
    """What a policy found. Stale collateral leaves the question open, whatever else was found.

    An appraisal is true when the evidence is accepted, so that `if appraise(…):` does what it says. Raising there would
    break what only asks for the outcome (`all`, `filter`, `assert`); `require` is for raising.
    """

    made_by: ClassVar[str] = "appraise"

    verified: VerifiedQuote
    findings: tuple[Check, ...]
    verdict: Verdict
    proof: InitVar[object] = None

    def __bool__(self) -> bool:
        return self.verdict is Verdict.ACCEPTED

    def __repr__(self) -> str:
        wrong = ", ".join(dict.fromkeys(check.id for check in self.findings if not check.ok))
        return f"<Appraisal {self.verdict}{': ' if wrong else ''}{wrong}>"

    def error(self) -> ConfcomError | None:
        """Why the evidence is not accepted; None when it is."""
        if self.verdict is Verdict.ACCEPTED:
            return None
        wrong = [check for check in self.findings if not check.ok]
        if self.verdict is Verdict.UNDECIDED:
            stale = [check for check in wrong if check.id == FRESHNESS]
            found = "; ".join(item.found for item in stale)
            return StaleCollateralError(f"not valid at the time of judgement: {found}", step=FRESHNESS)
        message = "; ".join(f"{item.id}: expected {item.expected}, found {item.found}" for item in wrong)
        advice = " ".join(dict.fromkeys(item.advice for item in wrong))
        return tcb_error(self.verified.tcb_status)(f"authentic, but not acceptable: {message}", advice=advice)

    def require(self) -> VerifiedQuote:
        """The verified quote, or the error that says why it is not accepted."""
        if error := self.error():
            raise error
        return self.verified


def tcb_error(status: TcbStatus | None) -> type[PolicyError]:
    """The class of the refusal of a quote with this TCB status."""
    if status is None:
        return TcbNotSupportedError
    return TcbRevokedError if status is TcbStatus.REVOKED else PolicyError


def appraise(verified: VerifiedQuote, policy: Policy, *, grace: timedelta = timedelta()) -> Appraisal:
    """Apply a policy and the safe defaults that it does not replace (`with_safe_defaults`); collect every finding.

    `grace` is how long after its end collateral is still accepted; what is not valid yet never is.
    """
    checked_type(verified, VerifiedQuote, "verified")
    if checked_type(grace, timedelta, "grace") < timedelta():
        raise ConfigError(f"grace: {grace} is negative")
    fresh = _freshness(verified, grace)
    findings = (*with_safe_defaults(checked_policy(policy)).check(verified), *fresh)
    if not all(check.ok for check in fresh):
        verdict = Verdict.UNDECIDED
    elif all(check.ok for check in findings):
        verdict = Verdict.ACCEPTED
    else:
        verdict = Verdict.REFUSED
    return Appraisal(verified, findings, verdict, proof=PROOF)


def _freshness(verified: VerifiedQuote, grace: timedelta) -> tuple[Check, ...]:
    """One finding for each cause: collateral that expired, certificates of the quote that did, a clock that is slow."""
    if not verified.stale:
        return (Check(FRESHNESS, ok=True, expected="valid now", found="valid"),)
    now, source = verified.verified_at, verified.source
    early = [window for window in verified.stale if now < window.not_before]
    expired = [window for window in verified.stale if window not in early]
    theirs = [window for window in expired if window in verified.collateral.windows]
    own = [window for window in expired if window not in theirs]
    expected = f"valid at {timestamp(now)}"
    found: list[Check] = []
    for windows, where, advice in ((theirs, f"from {source}", _STALE_ADVICE), (own, "in the quote", _OWN_ADVICE)):
        if windows:
            forgiven = all(window.not_after is not None and now - window.not_after <= grace for window in windows)
            ends = ", ".join(f"{window.what} at {timestamp(window.not_after)}" for window in windows)
            within = f", within the grace of {grace.days} days" if forgiven else ""
            found.append(finding(FRESHNESS, forgiven, expected, f"expired: {ends}, {where}{within}", advice))
    if early:
        starts = ", ".join(f"{window.what} from {timestamp(window.not_before)}" for window in early)
        found.append(finding(FRESHNESS, False, expected, f"not valid yet: {starts}", _EARLY_ADVICE))
    return tuple(found)


# The result for evidence in any form.

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


# Peers with attested certificates.


@sealed
@dataclass(frozen=True, slots=True, repr=False)
class VerifiedPeer(Proof):
    """The accepted holder of a certificate's key. `binding` says which hash in the report data covers the key."""

    made_by: ClassVar[str] = "verify_certificate"

    certificate: AttestedCertificate
    quote: VerifiedQuote
    binding: str
    proof: InitVar[object] = None

    def __repr__(self) -> str:
        return f"<VerifiedPeer {self.certificate.format}, {self.binding}: {self.quote!r}>"

    @property
    def public_key(self) -> bytes:
        """The key that the evidence vouches for: SubjectPublicKeyInfo, DER."""
        return self.certificate.public_key


def verify_certificate(
    certificate: bytes,
    policy: Policy,
    collateral: Collateral,
    *,
    now: datetime,
    verifier: QuoteVerifier | None = None,
    nonce: bytes | None = None,
    max_age: timedelta | None = None,
    grace: timedelta = timedelta(),
) -> VerifiedPeer:
    """Verify and appraise an attested certificate (DER or PEM) of any known format; raises for everything else.

    `policy` must name who is expected, an enclave, a signer or a TD: else it is a `ConfigError`. `nonce` must be the
    one in the evidence, which only interoperable RA-TLS can carry. `max_age` bounds how long ago the certificate says
    that it became valid; its own end says little, since generators write decades.

    Raises what `accept_quote` raises; `BindingError` when the evidence is not for this key.
    """
    checked_identity(policy)
    checked_time(now, "now")
    found = read_attested_certificate(checked_bytes(certificate, "certificate"))
    verifier = QuoteVerifier(TrustRoots.intel()) if verifier is None else verifier
    return verify_attested(
        found, policy, collateral, now=now, verifier=verifier, nonce=nonce, max_age=max_age, grace=grace
    )


def verify_attested(
    found: AttestedCertificate,
    policy: Policy,
    collateral: Collateral,
    *,
    now: datetime,
    verifier: QuoteVerifier,
    nonce: bytes | None,
    max_age: timedelta | None,
    grace: timedelta,
    known: bool = False,
) -> VerifiedPeer:
    """`verify_certificate` of a certificate that was read, for callers that choose the collateral by its quote.

    `known`: these very bytes were accepted before, so that their own signature and binding are good.
    """
    if known:
        check_validity(found, now)
    else:
        check_certificate(found, now)
    verified = verifier.verify(found.quote, collateral, now=now, any_tcb=True)
    if not known:
        check_binding(found)
    quote = appraise(verified, policy, grace=grace).require()
    check_nonce(found, nonce)
    check_age(found, now, max_age)
    return VerifiedPeer(found, quote, binding_of(found), proof=PROOF)


def verify_request(
    request: AttestedRequest,
    policy: Policy,
    collateral: Collateral,
    *,
    now: datetime,
    verifier: QuoteVerifier,
    nonce: bytes,
    purpose: bytes,
    grace: timedelta = timedelta(),
) -> VerifiedQuote:
    """Verify and appraise a request for a certificate; raises as `verify_certificate` does.

    The enclave must have claimed `nonce`, and `purpose` under `PURPOSE_CLAIM`: evidence for other uses does not count.
    """
    checked_identity(policy)
    check_own_signature(request.parts, step=SIGNATURE_STEP)
    verified = verifier.verify(request.quote, collateral, now=now, any_tcb=True)
    check_binding(request)
    check_nonce(request, nonce)
    found = request.ra_tls.further.get(PURPOSE_CLAIM)
    if found != purpose:
        raise BindingError(
            f"the evidence was made for another purpose: the claim {PURPOSE_CLAIM!r} is wrong",
            step=PURPOSE_STEP,
            expected=purpose.decode(),
            found="none" if found is None else found[:64].decode(errors="replace"),
        )
    return appraise(verified, policy, grace=grace).require()
