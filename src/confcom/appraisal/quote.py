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

Steps 2 to 5 depend on the platform and its collateral only. Their result is remembered, so a service that judges many
quotes of few platforms does 6 to 12 per quote; dates (12) are compared every time. The key is a digest of the DER that
was verified, however it was wrapped in PEM, and what says the same is one entry: variants of one genuine quote neither
fill the memory nor push others out of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.appraisal.collateral import Collateral, VerifiedCollateral, Window, digest_of, verify_collateral
from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check
from confcom.appraisal.identity_match import IDENTITY_OF, match_qe_identity, match_tdx_modules
from confcom.appraisal.tcb import TcbEvaluation, evaluate_sgx, evaluate_tdx, relaunch
from confcom.errors import (
    BindingError,
    CollateralInvalid,
    FormatError,
    RevokedError,
    TcbNotSupportedError,
    TcbRevokedError,
)
from confcom.formats.arguments import checked_int, checked_time, checked_type
from confcom.formats.certification_data import (
    PPID_TYPES,
    CertificationDataType,
    PpidCleartext,
    QeReportCertification,
)
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote, TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbStatus, TdxModuleIdentity
from confcom.formats.tdx import TdReportBody10, td_base
from confcom.pki import ecdsa
from confcom.pki.certificate import parse_certificates
from confcom.pki.chain import VerifiedChain, verify_chain
from confcom.pki.proof import PROOF
from confcom.pki.roots import TrustRoots

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

_QUOTE_CHECKS = (
    Check("qe-report-signature", ok=True, expected="signed by the PCK key", found="good signature"),
    Check("attestation-key-binding", ok=True, expected="vouched for by the QE", found="the same key"),
    Check("qe-identity", ok=True, expected="Intel's quoting enclave", found="matches the QE identity"),
    Check("quote-signature", ok=True, expected="signed by the attestation key", found="good signature"),
)

CACHE_SIZE = 256
"""Platforms, and sets of collateral, that one verifier remembers. Only what verified is remembered."""

_OTHER_PLATFORM = "Fetch the collateral that belongs to this platform (its TEE, FMSPC, PCE-ID and CA) and verify again."

V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    statement: bytes
    wrapping: bytes


class _Memory(Generic[V]):
    """What verified, by the digest of its content; the least recently used goes first. All keys are 32 bytes.

    `statement` is the digest of what was signed, without the signatures: ECDSA has two of each, so anybody can make
    other bytes that verify and say the same. These replace one another. `wrapping` is the digest of the bytes as they
    came: one for each entry, the latest, so that the usual ones need not be decoded. Safe to use from several threads.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry[V]] = OrderedDict()
        self._by_statement: dict[bytes, bytes] = {}
        self._by_wrapping: dict[bytes, bytes] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, *, wrapping: bytes) -> V | None:
        """What is known of that content; from now on also in this wrapping."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            self._by_wrapping.pop(entry.wrapping, None)
            entry.wrapping = wrapping
            self._by_wrapping[wrapping] = key
            return entry.value

    def get_wrapped(self, wrapping: bytes) -> V | None:
        """What is known of the content in its latest wrapping."""
        with self._lock:
            key = self._by_wrapping.get(wrapping)
            if key is None:
                return None
            self._entries.move_to_end(key)
            return self._entries[key].value

    def add(self, key: bytes, value: V, *, statement: bytes, wrapping: bytes) -> None:
        with self._lock:
            for other in (key, self._by_statement.get(statement)):
                self._forget(other)
            self._entries[key] = _Entry(value, statement, wrapping)
            self._by_statement[statement] = self._by_wrapping[wrapping] = key
            while len(self._entries) > self._size:
                self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes | None) -> None:
        if key is not None and (entry := self._entries.pop(key, None)):
            self._by_statement.pop(entry.statement, None)
            self._by_wrapping.pop(entry.wrapping, None)


@dataclass(slots=True)
class _Platform:
    """What steps 2 to 5 proved of one PCK chain under one set of collateral."""

    chain: VerifiedChain
    collateral: VerifiedCollateral
    checks: tuple[Check, ...]
    windows: tuple[Window, ...]
    not_before: datetime
    not_after: datetime
    # TCB evaluations by QE ISVSVN (SGX only: a TD brings SVNs of its own).
    evaluations: dict[int, TcbEvaluation] = field(default_factory=dict)


class QuoteVerifier:
    """Verifies quotes under explicit roots. Holds no clock and fetches nothing; `now` comes with every call."""

    def __init__(self, roots: TrustRoots, *, cache_size: int = CACHE_SIZE) -> None:
        self.roots = checked_type(roots, TrustRoots, "roots")
        self._cache_size = checked_int(cache_size, "cache_size", 32)
        self._collateral = _Memory[VerifiedCollateral](cache_size)
        self._platforms = _Memory[_Platform](cache_size)

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
        _check_named_platform(certification, platform.chain.extension, collateral)
        # (6) the TDX modules are ones that Intel describes
        modules: tuple[TdxModuleIdentity | None, ...] = ()
        if not isinstance(parsed.body, ReportBody):
            modules = match_tdx_modules(parsed.body, platform.collateral.tcb_info)
        # (7) the PCK key signed the QE report
        qe_report = certification.qe_report
        ecdsa.verify(
            platform.chain.public_key,
            certification.qe_report_signature,
            bytes(qe_report),
            step="qe-report-signature",
            what="the QE report",
        )
        # (8) the QE report binds the attestation key
        _check_key_binding(parsed)
        # (9) the QE is the one that Intel describes
        match_qe_identity(qe_report, platform.collateral.qe_identity)
        # (10) the attestation key signed this quote
        key = ecdsa.load_public_key(parsed.signature.attestation_key, step="quote-signature")
        ecdsa.verify(key, parsed.signature.signature, parsed.signed_bytes, step="quote-signature", what="the quote")
        # (11) TCB levels
        tcb = _evaluate(parsed, platform, modules)
        if not any_tcb:
            _refuse_hopeless(tcb)
        # (12) dates
        stale = () if platform.not_before <= now <= platform.not_after else _stale(platform.windows, now)
        return VerifiedQuote(
            quote=parsed,
            pck=platform.chain.extension,
            tcb=tcb,
            collateral=platform.collateral,
            root=platform.chain.root,
            stale=stale,
            verified_at=now,
            checks=platform.checks + _QUOTE_CHECKS,
            proof=PROOF,
        )

    def _platform(self, chain_pem: bytes, collateral: Collateral, tee: TeeType) -> _Platform:
        rest = collateral.digest(), tee.name.encode()
        wrapping = sha256(b"".join((*rest, chain_pem))).digest()
        known = self._platforms.get_wrapped(wrapping)
        if known is not None:
            return known
        beside = chain_pem is collateral.pck_certificate_chain
        with _blamed_on(collateral, beside=beside):
            certificates = parse_certificates(chain_pem, structure="PCK chain")
        key = digest_of((*certificates, *rest))
        known = self._platforms.get(key, wrapping=wrapping)
        if known is not None:
            return known
        # (2) to a trusted root
        with _blamed_on(collateral, beside=beside):
            chain = verify_chain(certificates, roots=self.roots, kind="pck", step="pck-chain")
        # (3) under the same roots
        verified = self._verified_collateral(collateral)
        # (4) and (5) they belong together
        trusted = Check("pck-chain", ok=True, expected="a chain to a trusted root", found=chain.root.name)
        checks = (trusted, *verified.checks, *_fit(chain, verified, tee, collateral))
        windows = (*chain.windows, *verified.windows)
        platform = _Platform(
            chain=chain,
            collateral=verified,
            checks=checks,
            windows=windows,
            not_before=max(window.not_before for window in windows),
            not_after=min(window.not_after for window in windows if window.not_after is not None),
        )
        statement = digest_of((chain.statement, verified.statement, tee.name.encode()))
        self._platforms.add(key, platform, statement=statement, wrapping=wrapping)
        return platform

    def _verified_collateral(self, collateral: Collateral) -> VerifiedCollateral:
        key = collateral.digest()
        known = self._collateral.get(key, wrapping=key)
        if known is None:
            known = verify_collateral(collateral, roots=self.roots)
            self._collateral.add(key, known, statement=known.statement, wrapping=key)
        return known


def verify_quote(
    quote: Quote | bytes, collateral: Collateral, *, roots: TrustRoots, now: datetime, any_tcb: bool = False
) -> VerifiedQuote:
    """Verify a single quote; a service that judges many keeps a `QuoteVerifier`."""
    return QuoteVerifier(roots).verify(quote, collateral, now=now, any_tcb=any_tcb)


def pck_chain_of(quote: Quote, beside: bytes | None) -> bytes:
    """The PCK chain of a quote, as it came (PEM): its own, or `beside` where it only names its platform.

    Quotes of type 5 carry their chain, those of the types 1 to 3 PPID, CPUSVN, PCESVN and PCE-ID. Others, and those
    without a chain beside, are a `FormatError`.
    """
    kind = quote.signature.certification.certification_data.type
    if kind is CertificationDataType.PCK_CERTIFICATE_CHAIN:
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


def _blamed_on(collateral: Collateral, *, beside: bool) -> AbstractContextManager[None]:
    """A chain that came beside the quote is a document of the collateral; the quote's own is evidence."""
    return collateral.blamed("pck_certificate_chain") if beside else nullcontext()


def _check_named_platform(certification: QeReportCertification, pck: PckExtension, collateral: Collateral) -> None:
    """Step 2 for the types 1 to 3: the PCK certificate beside the quote is one of the platform that the quote names.

    A quote names the raw TCB, or that of its certificate: CPUSVN as the QE reports it, or as the certificate says.
    """
    if certification.certification_data.type is CertificationDataType.PCK_CERTIFICATE_CHAIN:
        return
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


def _fit(chain: VerifiedChain, collateral: VerifiedCollateral, tee: TeeType, received: Collateral) -> tuple[Check, ...]:
    """Steps 4 and 5: collateral and PCK certificate belong together, and nothing is revoked."""
    checks: list[Check] = []

    def compare(part: str, step: str, what: str, expected: str, found: str) -> None:
        if expected != found:
            raise CollateralInvalid(
                f"is not for this platform: {what} is {found}, of the evidence {expected}",
                document=received.place(part),
                advice=_OTHER_PLATFORM,
                step=step,
                expected=f"{what} {expected}",
                found=f"{what} {found}",
            )
        checks.append(Check(step, ok=True, expected=f"{what} {expected}", found=found))

    if chain.root.certificate_der != collateral.root.certificate_der:
        compare("pck_crl_issuer_chain", "pck-chain", "root", chain.root.name, collateral.root.name)
    # (4) the PCK CRL is the issuer's, and nothing is revoked
    issuer, crl_issuer = chain.intermediates[0], collateral.pck_ca
    names = issuer.subject.rfc4514_string(), crl_issuer.subject.rfc4514_string()
    compare("pck_crl", "pck-revocation", "PCK CRL issuer", *names)
    compare("pck_crl", "pck-revocation", "PCK CRL issuer's key", _key_name(issuer), _key_name(crl_issuer))
    for certificate, crl, who in (
        (chain.leaf, collateral.pck_crl, "the PCK certificate"),
        (issuer, collateral.root_ca_crl, "the PCK CA"),
    ):
        serial = certificate.serial_number
        if crl.revoked(serial):
            raise RevokedError(
                f"{who} {serial:x} is on the revocation list of its issuer",
                step="pck-revocation",
                expected="not revoked",
                found=f"{who} {serial:x} revoked",
            )
        checks.append(Check("pck-revocation", ok=True, expected=f"{who} not revoked", found="not revoked"))
    # (5) the TCB info is this platform's
    info = collateral.tcb_info
    for what, expected, found in (
        ("TEE", tee.name, info.id),
        ("FMSPC", chain.extension.fmspc.hex(), info.fmspc.hex()),
        ("PCE-ID", chain.extension.pce_id.hex(), info.pce_id.hex()),
    ):
        compare("tcb_info", "tcb-info-match", what, expected, found)
    compare("qe_identity", "tcb-info-match", "enclave identity", IDENTITY_OF[tee], collateral.qe_identity.id)
    return tuple(checks)


def _key_name(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key, for comparing and for people."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(spki).hexdigest()


def _check_key_binding(quote: Quote) -> None:
    """Step 8. The upper half of the QE's report data is free: Intel's QE writes zeros, no verifier reads it."""
    signature = quote.signature
    expected = sha256(signature.attestation_key + signature.certification.qe_authentication_data).digest()
    found = signature.certification.qe_report.report_data[:32]
    if expected != found:
        raise BindingError(
            "the quoting enclave does not vouch for the key that signed this quote",
            step="attestation-key-binding",
            expected=expected.hex(),
            found=found.hex(),
        )


def _evaluate(quote: Quote, platform: _Platform, modules: Sequence[TdxModuleIdentity | None]) -> TcbEvaluation:
    """Step 11; `modules` are those of `match_tdx_modules`."""
    info, identity = platform.collateral.tcb_info, platform.collateral.qe_identity
    pck, qe_isv_svn = platform.chain.extension.tcb, quote.signature.certification.qe_report.isv_svn
    if isinstance(quote.body, ReportBody):
        known = platform.evaluations.get(qe_isv_svn)
        if known is None:
            known = platform.evaluations[qe_isv_svn] = evaluate_sgx(pck, qe_isv_svn, info, identity)
        return known
    launch = evaluate_tdx(pck, qe_isv_svn, td_base(quote.body).tee_tcb_svn, info, identity, modules[0])
    if isinstance(quote.body, TdReportBody10):
        return launch
    # The module may have been updated under the running TD: judge the one that runs now too.
    return relaunch(launch, evaluate_tdx(pck, qe_isv_svn, quote.body.tee_tcb_svn2, info, identity, modules[1]))


def _refuse_hopeless(tcb: TcbEvaluation) -> None:
    if tcb.status is None:
        raise TcbNotSupportedError(f"authentic, but no TCB level of Intel's list is as low as this {tcb.missing}")
    if tcb.status is TcbStatus.REVOKED:
        raise TcbRevokedError(f"authentic, but Intel revoked this TCB (level of {tcb.tcb_date:%Y-%m-%d})")


def _stale(windows: tuple[Window, ...], now: datetime) -> tuple[Window, ...]:
    return tuple(
        window
        for window in windows
        if now < window.not_before or (window.not_after is not None and now > window.not_after)
    )
