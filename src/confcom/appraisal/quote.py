"""Verifies quotes: are they authentic, and at which TCB? Whether that is acceptable is `policy`'s question.

The steps follow Intel's quote verification library (see docs/explanation/verification.md for each with its source):

 (1) the quote is well formed, and its PCK certificate chain is here: in its certification data, or beside it
 (2) the PCK chain leads to a trusted root key; one that came beside the quote is of the platform that the quote names
 (3) the collateral is signed under the same root (`appraisal.collateral`: its own steps)
 (4) the PCK certificate's issuer issued the PCK CRL; neither the certificate nor its issuer is revoked
 (5) the TCB info is for this TEE, FMSPC and PCE-ID
 (6) TDX: the TDX module is one that the TCB info describes; TDX 1.5: the one at launch, and the one that runs now
 (7) the PCK key signed the QE report
 (8) the QE report binds the attestation key: SHA-256(key ‖ authentication data) ‖ 32 free bytes
 (9) the QE report is of the enclave that the QE identity describes
(10) the attestation key signed header and body
(11) TCB levels: platform, QE and TDX module, converged; a TD of TDX 1.5 is judged for its launch and for now
(12) dates: certificates, CRLs, TCB info and QE identity are valid at `now`; what is not is reported, not raised

Steps 2 to 5 depend on the platform and its collateral only, steps 7 to 9 on its QE, steps 6 and 11 on SVNs. Their
results are remembered, each for the exact bytes that it was found for, so a service that judges many quotes of few
platforms verifies one signature per quote; dates (12) are compared every time. A platform that is new under known
collateral costs three; the results of steps 6, 9 and 11 are shared with other platforms of its model. Keys are the
signed bytes, however they are wrapped in PEM, so all variants of a genuine quote share one entry: they neither fill the
memory nor push others out of it (`pki.proof`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any, ClassVar, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from confcom.appraisal.collateral import (
    SIGNATURES,
    Collateral,
    VerifiedCollateral,
    stale_windows,
    verify_collateral,
)
from confcom.appraisal.findings import Check, passed
from confcom.appraisal.tcb import (
    IDENTITY_OF,
    TcbEvaluation,
    evaluate_sgx,
    evaluate_tdx,
    match_qe_identity,
    match_tdx_modules,
    relaunch,
)
from confcom.errors import (
    BindingError,
    CollateralInvalid,
    FormatError,
    RevokedError,
    TcbNotSupportedError,
    TcbRevokedError,
    VerificationError,
)
from confcom.formats.arguments import checked_int, checked_time, checked_type
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import (
    PPID_TYPES,
    CertificationDataType,
    PpidCleartext,
    QeReportCertification,
    Quote,
    TeeType,
)
from confcom.formats.sgx import ReportBody, TdReportBody10, TdReportBody15, td_base
from confcom.formats.tcb_info import TcbStatus, TdxModuleIdentity
from confcom.pki.certificate import load_chain
from confcom.pki.chain import TrustRoot, TrustRoots, VerifiedChain, Window, verify_chain
from confcom.pki.proof import PROOF, Known, Memory, Proof, load_public_key, sealed, verify_ecdsa

STEPS = (
    "pck-chain",
    "collateral-issuer-chains",
    "collateral-root-ca-crl",
    "collateral-issuers-not-revoked",
    "collateral-pck-crl",
    "collateral-tcb-info-signature",
    "collateral-qe-identity-signature",
    "pck-revocation",
    "tcb-info-match",
    "tdx-module-identity",
    "qe-report-signature",
    "attestation-key-binding",
    "qe-identity",
    "quote-signature",
)
"""Ids of the checks in the order in which they are made."""

CACHE_SIZE = 256
"""Platforms, and sets of collateral, that one verifier remembers. Only what verified is remembered."""
_ATTESTERS = 16
"""Attesters of one platform that are remembered: one for each attestation key of its QE and each TDX module."""

# Members of enumerations are looked up once: Python 3.11 calls a function for each access.
_REVOKED, _PCK_CHAIN = TcbStatus.REVOKED, CertificationDataType.PCK_CERTIFICATE_CHAIN
_TEE_NAMES = {tee: tee.name for tee in TeeType}

_OTHER_PLATFORM = "Fetch the collateral that belongs to this platform (its TEE, FMSPC, PCE-ID and CA) and verify again."


_Attester: TypeAlias = tuple[ec.EllipticCurvePublicKey, TcbEvaluation]
"""The attestation key of a QE, and the TCB of what it attests."""


class _Platform(msgspec.Struct):
    """What steps 2 to 5 proved of one PCK chain under one set of collateral, and what is known of its QEs since."""

    chain: VerifiedChain
    collateral: VerifiedCollateral
    # Attestation keys that steps 7 to 9 proved, with the TCB of steps 6 and 11; by QE report, key and SVNs.
    attesters: Memory[_Attester]


_QUOTE_CHECKS = (
    passed("qe-report-signature", "signed by the PCK key", "good signature"),
    passed("attestation-key-binding", "vouched for by the QE", "the same key"),
    passed("qe-identity", "Intel's quoting enclave", "matches the QE identity"),
    passed("quote-signature", "signed by the attestation key", "good signature"),
)


@sealed
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifiedQuote(Proof):
    """An authentic quote. Only `QuoteVerifier.verify` and `verify_similar` make one.

    Authentic is not acceptable: `tcb_status`, `stale` and the identity inside are for a policy to judge (`appraise`).
    `stale` lists what was expired or not yet valid at `verified_at`; the TCB status is then the one it would have.
    `source` is that of the collateral that came with this quote: `collateral` may have been verified with an earlier
    one, from elsewhere.
    """

    made_by: ClassVar[str] = "QuoteVerifier.verify"

    quote: Quote
    chain: VerifiedChain
    tcb: TcbEvaluation
    collateral: VerifiedCollateral
    source: str
    stale: tuple[Window, ...]
    verified_at: datetime
    proof: InitVar[object] = None

    def __repr__(self) -> str:
        status = self.tcb_status.value if self.tcb_status else "not supported"
        marks = (", simulated" if self.simulated else "") + (", stale collateral" if self.stale else "")
        body = self.quote.body
        if isinstance(body, ReportBody):
            who = f"enclave {body.mr_enclave.hex()[:16]}..., product {body.isv_prod_id}, version {body.isv_svn}"
        else:
            who = f"TD {td_base(body).mr_td.hex()[:16]}..."
        form = f"{self.tee.name} v{self.quote.header.version}"
        return f"<VerifiedQuote {form}, {who}, FMSPC {self.pck.fmspc.hex()}, TCB {status}{marks}>"

    @property
    def pck(self) -> PckExtension:
        """What the PCK certificate says about the platform."""
        return self.chain.extension

    @property
    def root(self) -> TrustRoot:
        """The trusted root that the PCK certificate leads to."""
        return self.chain.root

    @property
    def checks(self) -> tuple[Check, ...]:
        """The steps of the verification, all of which passed."""
        trusted = passed("pck-chain", "a chain to a trusted root", self.root.name)
        return trusted, *self.collateral.checks, *self._platform_checks(), *_QUOTE_CHECKS

    def _platform_checks(self) -> tuple[Check, ...]:
        issuer, pck = self.chain.intermediates[0], self.pck
        revocation, match = "pck-revocation", "tcb-info-match"
        identity = self.collateral.qe_identity.id
        return (
            passed(revocation, f"PCK CRL issuer {issuer.subject_text}", issuer.subject_text),
            passed(revocation, f"PCK CRL issuer's key {issuer.key_digest}", issuer.key_digest),
            passed(revocation, "the PCK certificate not revoked", "not revoked"),
            passed(revocation, "the PCK CA not revoked", "not revoked"),
            passed(match, f"TEE {self.tee.name}", self.tee.name),
            passed(match, f"FMSPC {pck.fmspc.hex()}", pck.fmspc.hex()),
            passed(match, f"PCE-ID {pck.pce_id.hex()}", pck.pce_id.hex()),
            passed(match, f"enclave identity {identity}", identity),
        )

    @property
    def simulated(self) -> bool:
        """Whether the root is not Intel's: then no hardware vouches for anything here."""
        return self.root.simulated

    @property
    def tee(self) -> TeeType:
        """SGX or TDX."""
        return self.quote.tee

    @property
    def tcb_status(self) -> TcbStatus | None:
        """Intel's status of the platform, QE and TDX module together; None when no level matches."""
        return self.tcb.status

    @property
    def launch_tcb(self) -> TcbEvaluation | None:
        """The TCB by the TDX module that launched the TD; None for enclaves and TDX 1.0, which have one TCB."""
        return self.tcb.launch

    @property
    def current_tcb(self) -> TcbEvaluation | None:
        """The TCB by the TDX module that runs now (TEE_TCB_SVN_2); None for enclaves and TDX 1.0."""
        return self.tcb.current

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave or TD chose."""
        return self.quote.report_data

    @property
    def tcb_evaluation_data_number(self) -> int:
        """The lower of the numbers of TCB info and QE identity."""
        info, identity = self.collateral.tcb_info, self.collateral.qe_identity
        return min(info.tcb_evaluation_data_number, identity.tcb_evaluation_data_number)


class QuoteVerifier:
    """Verifies quotes under explicit roots. Holds no clock and fetches nothing; `now` comes with every call."""

    def __init__(self, roots: TrustRoots, *, cache_size: int = CACHE_SIZE) -> None:
        self.roots = checked_type(roots, TrustRoots, "roots")
        self._cache_size = checked_int(cache_size, "cache_size", 32)
        self._signatures: Known = Memory(SIGNATURES)
        self._collateral: Memory[VerifiedCollateral] = Memory(cache_size)
        self._platforms: Memory[_Platform] = Memory(cache_size)
        self._tcbs: Memory[TcbEvaluation] = Memory(cache_size)

    def __reduce__(self) -> tuple[Any, ...]:
        # For another process: it remembers nothing yet.
        return partial(QuoteVerifier, cache_size=self._cache_size), (self.roots,)

    def verify(
        self, quote: Quote | bytes, collateral: Collateral, *, now: datetime, any_tcb: bool = False
    ) -> VerifiedQuote:
        """Verify one quote; raises `FormatError` or `VerificationError` at the first step that fails.

        A TCB that no policy can accept raises too: `TcbRevokedError`, or `TcbNotSupportedError` where no level matches.
        With `any_tcb` such a quote is returned as well, for callers that report why they refuse it.
        """
        checked_time(now, "now")
        checked_type(any_tcb, bool, "any_tcb")
        checked_type(collateral, Collateral, "collateral", "; load_bundle(path) reads one")
        # (1) well formed, with a PCK certificate chain in it or beside it
        parsed = quote if isinstance(quote, Quote) else Quote.parse(quote)
        certification = parsed.signature.certification
        pck_chain = pck_chain_of(parsed, collateral.pck_certificate_chain)
        # (2) to (5) what the platform and its collateral decide
        platform = self._platform(pck_chain, collateral, parsed.tee)
        if certification.certification_data.type is not _PCK_CHAIN:
            _check_named_platform(certification, platform.chain.extension, collateral)
        # (6) to (9), (11) what the QE and the SVNs decide
        report, qe_signature = bytes(certification.qe_report), certification.qe_report_signature
        bound, svns = _bound(parsed), _svns(parsed, report)
        statement = b"".join((report, bound, svns))
        known = platform.attesters.get(statement, qe_signature)
        judged = b"" if known else _judged(platform, report, svns)
        key, tcb = known or _attester(parsed, platform, report, bound, self._tcbs.get(judged))
        # (10) the attestation key signed this quote
        signed = sha256(parsed.signed_bytes).digest()
        verify_ecdsa(key, parsed.signature.signature, signed, step="quote-signature", what="the quote")
        if known is None:
            platform.attesters.add(statement, (key, tcb), exact=qe_signature)
            if judged not in self._tcbs:
                self._tcbs.add(judged, tcb)
        if not any_tcb:
            _refuse_hopeless(tcb)
        # (12) dates
        return VerifiedQuote(
            quote=parsed,
            chain=platform.chain,
            tcb=tcb,
            collateral=platform.collateral,
            source=collateral.source,
            stale=_stale(platform.chain, platform.collateral, now),
            verified_at=now,
            proof=PROOF,
        )

    def _platform(self, chain_pem: bytes, collateral: Collateral, tee: TeeType) -> _Platform:
        content, of_tee = collateral.content(), bytes((tee,))
        wrapping = content.exact + of_tee + sha256(chain_pem).digest()
        known = self._platforms.get_wrapped(wrapping)
        if known is not None:
            return known
        try:
            received = load_chain(chain_pem, structure="PCK chain")
            statement, exact = content.statement + of_tee + received.statement, content.exact + received.exact
            known = self._platforms.get(statement, exact, wrapping=wrapping)
            if known is not None:
                return known
            # (2) to a trusted root
            chain = verify_chain(received, roots=self.roots, kind="pck", step="pck-chain", known=self._signatures)
        except (FormatError, VerificationError) as error:
            # A chain that came beside the quote is a document of the collateral; the quote's own is evidence.
            if chain_pem is collateral.pck_certificate_chain:
                raise CollateralInvalid.of(error, collateral.place("pck_certificate_chain")) from error
            raise
        # (3) under the same roots
        verified = self._collateral.get(content.statement, content.exact)
        if verified is None:
            verified = verify_collateral(collateral, roots=self.roots, known=self._signatures)
            self._collateral.add(content.statement, verified, exact=content.exact)
        # (4) and (5) they belong together
        _check_fit(chain, verified, tee, collateral)
        platform = _Platform(chain, verified, Memory(_ATTESTERS))
        self._platforms.add(statement, platform, exact=exact, wrapping=wrapping)
        return platform


def verify_quote(
    quote: Quote | bytes, collateral: Collateral, *, roots: TrustRoots, now: datetime, any_tcb: bool = False
) -> VerifiedQuote:
    """Verify a single quote; a service that judges many keeps a `QuoteVerifier`."""
    return QuoteVerifier(roots).verify(quote, collateral, now=now, any_tcb=any_tcb)


def verify_similar(earlier: VerifiedQuote, quote: Quote, *, roots: TrustRoots, now: datetime) -> VerifiedQuote:
    """Verify what `Quote.similar` read beside an earlier quote, at any TCB: its signature (10) and the dates (12).

    The other steps judge what both quotes share. `SignatureError`: its signature is wrong.
    """
    checked_time(now, "now")
    before, signature = earlier.quote, quote.signature
    if earlier.root not in roots.roots:
        raise ValueError("the earlier quote leads to another root")
    if (
        quote.header is not before.header
        or bytes(quote.body)[:-64] != bytes(before.body)[:-64]
        or signature.attestation_key is not before.signature.attestation_key
        or signature.certification is not before.signature.certification
    ):
        raise ValueError("the quotes differ in more than report data and signature")
    chain, collateral = earlier.chain, earlier.collateral
    key, signed = _attestation_key(signature.attestation_key), sha256(quote.signed_bytes).digest()
    verify_ecdsa(key, signature.signature, signed, step="quote-signature", what="the quote")
    return VerifiedQuote(
        quote=quote,
        chain=chain,
        tcb=earlier.tcb,
        collateral=collateral,
        source=earlier.source,
        stale=_stale(chain, collateral, now),
        verified_at=now,
        proof=PROOF,
    )


@lru_cache(maxsize=CACHE_SIZE)
def _attestation_key(point: bytes) -> ec.EllipticCurvePublicKey:
    return load_public_key(point, step="quote-signature")


def _stale(chain: VerifiedChain, collateral: VerifiedCollateral, now: datetime) -> tuple[Window, ...]:
    """Step 12."""
    begins, ends = (chain.valid_from, collateral.valid_from), (chain.valid_until, collateral.valid_until)
    if max(begins) <= now <= min(ends):
        return ()
    # The quote and the PCK CRL have the CA and the root in common.
    return stale_windows(dict.fromkeys((*chain.windows, *collateral.windows)), now)


def pck_chain_of(quote: Quote, beside: bytes | None) -> bytes:
    """The PCK chain of a quote, as it came (PEM): its own, or `beside` where it only names its platform.

    Quotes of type 5 carry their chain, those of the types 1 to 3 PPID, CPUSVN, PCESVN and PCE-ID. Others, and those
    without a chain beside, are a `FormatError`.
    """
    kind = quote.signature.certification.certification_data.type
    if kind is _PCK_CHAIN:
        return quote.signature.certification.certification_data.data
    if kind in PPID_TYPES and beside is not None:
        return beside
    message = f"type {kind.value} ({kind.name}) cannot be verified, expected 5 (PCK certificate chain)"
    advice = "Let the attester use a quote provider library, so that its quotes carry the PCK certificate chain"
    if kind in PPID_TYPES:
        message = f"type {kind.value} ({kind.name}) names the platform, but its PCK certificate chain is not here"
        advice += (
            ", or give the chain beside the quote (`confcom verify --pck-chain`, or pck_chain.pem in the folder of "
            "collateral). To fetch its collateral, name --fmspc and --ca, which `confcom inspect` of the chain shows"
        )
    raise FormatError(message, structure="Quote", field="certification_data.type", advice=f"{advice}.")


def _check_named_platform(certification: QeReportCertification, pck: PckExtension, collateral: Collateral) -> None:
    """Step 2 for the types 1 to 3: the PCK certificate beside the quote is one of the platform that the quote names.

    A quote names the raw TCB, or that of its certificate: CPUSVN as the QE reports it, or as the certificate says.
    """
    named = certification.certification_data.ppid()
    cpu_svns = pck.tcb.cpu_svn, certification.qe_report.cpu_svn
    pce_id = named.pce_id.to_bytes(2, "little")
    checks = [
        ("PCE-ID", pce_id == pck.pce_id, pck.pce_id.hex(), pce_id.hex()),
        ("CPUSVN", named.cpu_svn in cpu_svns, " or ".join(svn.hex() for svn in cpu_svns), named.cpu_svn.hex()),
        ("PCESVN", named.pce_svn >= pck.tcb.pce_svn, f"at least {pck.tcb.pce_svn}", str(named.pce_svn)),
    ]
    if isinstance(named, PpidCleartext):
        checks.insert(0, ("PPID", named.ppid == pck.ppid, pck.ppid.hex(), named.ppid.hex()))
    for what, agrees, expected, found in checks:
        if not agrees:
            raise CollateralInvalid(
                f"is not of the platform that the quote names: {what} in the quote is {found}, expected {expected}",
                document=collateral.place("pck_certificate_chain"),
                step="pck-chain",
                expected=f"{what} {expected}",
                found=f"{what} {found}",
                advice="Give the PCK certificate chain of the machine that made the quote.",
            )


def _check_fit(chain: VerifiedChain, collateral: VerifiedCollateral, tee: TeeType, received: Collateral) -> None:
    """Steps 4 and 5: collateral and PCK certificate belong together, and nothing is revoked."""
    if chain.root.certificate_der != collateral.root.certificate_der:
        names = chain.root.name, collateral.root.name
        raise _unfit(received, "pck_crl_issuer_chain", "pck-chain", "root", *names)
    # (4) the PCK CRL is the issuer's, and nothing is revoked
    issuer, crl_issuer = chain.intermediates[0], collateral.pck_ca
    if issuer.subject != crl_issuer.subject:
        texts = issuer.subject_text, crl_issuer.subject_text
        raise _unfit(received, "pck_crl", "pck-revocation", "PCK CRL issuer", *texts)
    if issuer.point != crl_issuer.point:
        texts = issuer.key_digest, crl_issuer.key_digest
        raise _unfit(received, "pck_crl", "pck-revocation", "PCK CRL issuer's key", *texts)
    _check_not_revoked(chain, collateral)
    # (5) the TCB info is this platform's
    info, pck = collateral.tcb_info, chain.extension
    step = "tcb-info-match"
    if _TEE_NAMES[tee] != info.id:
        raise _unfit(received, "tcb_info", step, "TEE", tee.name, info.id)
    if pck.fmspc != info.fmspc:
        raise _unfit(received, "tcb_info", step, "FMSPC", pck.fmspc.hex(), info.fmspc.hex())
    if pck.pce_id != info.pce_id:
        raise _unfit(received, "tcb_info", step, "PCE-ID", pck.pce_id.hex(), info.pce_id.hex())
    if IDENTITY_OF[tee] is not collateral.qe_identity.id:
        raise _unfit(received, "qe_identity", step, "enclave identity", IDENTITY_OF[tee], collateral.qe_identity.id)


def _unfit(received: Collateral, part: str, step: str, what: str, expected: str, found: str) -> CollateralInvalid:
    return CollateralInvalid(
        f"is not for this platform: {what} is {found}, of the evidence {expected}",
        document=received.place(part),
        advice=_OTHER_PLATFORM,
        step=step,
        expected=f"{what} {expected}",
        found=f"{what} {found}",
    )


def _check_not_revoked(chain: VerifiedChain, collateral: VerifiedCollateral) -> None:
    for certificate, crl, who in (
        (chain.leaf, collateral.pck_crl, "the PCK certificate"),
        (chain.intermediates[0], collateral.root_ca_crl, "the PCK CA"),
    ):
        serial = certificate.serial_number
        if crl.revoked(serial):
            raise RevokedError(
                f"{who} {serial:x} is on the revocation list of its issuer",
                step="pck-revocation",
                expected="not revoked",
                found=f"{who} {serial:x} revoked",
            )


def _attester(quote: Quote, platform: _Platform, report: bytes, bound: bytes, tcb: TcbEvaluation | None) -> _Attester:
    """Steps 6 to 9 and 11, remembered for each QE report, key and set of SVNs of the platform.

    `report` is the QE's; its report data must begin with `bound`. `tcb` is the result for `_judged`, if it is known.
    """
    certification, key = quote.signature.certification, quote.signature.attestation_key
    # (6) the TDX modules are ones that Intel describes
    modules: Sequence[TdxModuleIdentity | None] = ()
    if tcb is None and not isinstance(quote.body, ReportBody):
        modules = match_tdx_modules(quote.body, platform.collateral.tcb_info)
    # (7) the PCK key signed the QE report
    signed, signature = sha256(report).digest(), certification.qe_report_signature
    verify_ecdsa(platform.chain.leaf, signature, signed, step="qe-report-signature", what="the QE report")
    # (8) the QE report binds the attestation key. The upper half of its report data is free: Intel's QE writes zeros.
    found = report[_REPORT_DATA][:32]
    if found != bound:
        raise BindingError(
            "the quoting enclave does not vouch for the key that signed this quote",
            step="attestation-key-binding",
            expected=bound.hex(),
            found=found.hex(),
        )
    if tcb is None:
        # (9) the QE is the one that Intel describes
        match_qe_identity(certification.qe_report, platform.collateral.qe_identity)
        # (11) TCB levels
        tcb = _evaluate(quote, platform, modules)
    return _attestation_key(key), tcb


def _bound(quote: Quote) -> bytes:
    """The digest of the attestation key with which the report data of the QE must begin (32 bytes)."""
    return sha256(quote.signature.attestation_key + quote.signature.certification.qe_authentication_data).digest()


_QE_IDENTITY = ReportBody.place("misc_select", "isv_svn")
_ISV_SVN, _REPORT_DATA = ReportBody.place("isv_svn"), ReportBody.place("report_data")
_LAUNCH_SVN, _SEAM = TdReportBody10.place("tee_tcb_svn"), TdReportBody10.place("mr_signer_seam", "seam_attributes")
_PRESENT_SVN = TdReportBody15.place("tee_tcb_svn2")


def _judged(platform: _Platform, report: bytes, svns: bytes) -> bytes:
    """The inputs of steps 6, 9 and 11; equal for platforms of one model and TCB with the same QE."""
    pck = platform.chain.extension.tcb
    tcb = bytes(pck.sgx_components) + pck.pce_svn.to_bytes(2)
    return b"".join((platform.collateral.statement, tcb, report[_QE_IDENTITY], svns))


def _svns(quote: Quote, report: bytes) -> bytes:
    """The inputs of steps 6 and 11 in a quote and its QE report; shorter for TDX 1.0 than for 1.5."""
    isv_svn = report[_ISV_SVN]
    if isinstance(quote.body, ReportBody):
        return isv_svn
    body = bytes(quote.body)
    return b"".join((isv_svn, body[_LAUNCH_SVN], body[_SEAM], body[_PRESENT_SVN]))


def _evaluate(quote: Quote, platform: _Platform, modules: Sequence[TdxModuleIdentity | None]) -> TcbEvaluation:
    """Step 11; `modules` are those of `match_tdx_modules`."""
    info, identity = platform.collateral.tcb_info, platform.collateral.qe_identity
    pck, report = platform.chain.extension.tcb, bytes(quote.signature.certification.qe_report)
    qe_isv_svn = int.from_bytes(report[_ISV_SVN], "little")
    if isinstance(quote.body, ReportBody):
        return evaluate_sgx(pck, qe_isv_svn, info, identity)
    body = bytes(quote.body)
    launch_svn = body[_LAUNCH_SVN]
    launch = evaluate_tdx(pck, qe_isv_svn, launch_svn, info, identity, modules[0])
    if isinstance(quote.body, TdReportBody10):
        return launch
    # The module may have been updated under the running TD: judge the one that runs now too.
    svn = body[_PRESENT_SVN]
    same = svn == launch_svn
    return relaunch(launch, launch if same else evaluate_tdx(pck, qe_isv_svn, svn, info, identity, modules[1]))


def _refuse_hopeless(tcb: TcbEvaluation) -> None:
    if tcb.status is None:
        message = f"authentic, but no TCB level of Intel's list is as low as this {tcb.missing}"
        raise TcbNotSupportedError(message, advice=f"Update {tcb.behind}.")
    if tcb.status is _REVOKED:
        raise TcbRevokedError(f"authentic, but Intel revoked this TCB (level of {tcb.tcb_date:%Y-%m-%d})")
