"""The public API's types: this file is never run, it only has to type-check."""

from __future__ import annotations

from datetime import datetime
from os import environ
from pathlib import Path

from confcom import (
    AcceptTcb,
    AllOf,
    AnyOf,
    Appraisal,
    AttestationResult,
    Check,
    Collateral,
    CollateralError,
    CollateralSource,
    CollateralStore,
    ConfcomError,
    ConfigError,
    ExitCode,
    FormatError,
    HeldData,
    IntelDcapPlatform,
    IsvProdId,
    LocalEnclave,
    MinIsvSvn,
    MrConfigId,
    MrEnclave,
    MrOwner,
    MrOwnerConfig,
    MrSeam,
    MrSigner,
    MrSignerSeam,
    MrTd,
    NoDebug,
    Platform,
    PlatformError,
    Policy,
    PolicyError,
    PolicyFile,
    ProtocolError,
    Quote,
    QuoteResult,
    QuoteSource,
    QuoteVerifier,
    ReportBody,
    ReportData,
    Rtmr0,
    Rtmr1,
    Rtmr2,
    Rtmr3,
    SourceOptions,
    TargetInfo,
    TcbStatus,
    TdAttributes,
    TeeType,
    TrustRoot,
    TrustRoots,
    Verdict,
    VerificationError,
    VerifiedQuote,
    Xfam,
    accept_quote,
    appraise,
    exit_code,
    fetch_for_quote,
    judge,
    launch_enclave,
    load_bundle,
    load_policy,
    load_trust_roots,
    open_platform,
    open_quote_source,
    open_source,
    own_quote_source,
    process_mode,
    safe_defaults,
    save_bundle,
    verify_local_report,
    verify_quote,
)


def relying_party(evidence: bytes, now: datetime) -> VerifiedQuote:
    """One call; then the two questions one by one."""
    accept_quote(evidence, load_bundle("collateral"), MrSigner([bytes(32)]), now=now)
    collateral: Collateral = load_bundle(Path("collateral"))
    verifier = QuoteVerifier(TrustRoots.intel())
    verified: VerifiedQuote = verifier.verify(evidence, collateral, now=now)
    policy = AllOf(safe_defaults(), AnyOf(MrEnclave((bytes(32),)), MrSigner((bytes(32),))))
    appraisal: Appraisal = appraise(verified, policy)
    status: TcbStatus | None = verified.tcb_status
    assert status is not TcbStatus.REVOKED
    return appraisal.require()


def service(evidence: bytes, collateral: Collateral, root_pem: bytes, now: datetime) -> Verdict:
    """One call that never raises for what the evidence is."""
    roots = TrustRoots((TrustRoot.from_pem(root_pem),))
    policy = AllOf(AcceptTcb([TcbStatus.UP_TO_DATE]))
    result: AttestationResult = judge(evidence, collateral, verifier=QuoteVerifier(roots), policy=policy, now=now)
    quote: Quote = verify_quote(evidence, collateral, roots=roots, now=now).quote
    assert quote.report_data
    return result.verdict


def every_policy() -> Policy:
    """Each condition takes bytes of its size."""
    td: tuple[Policy, ...] = tuple(
        kind([bytes(48)])
        for kind in (MrTd, Rtmr0, Rtmr1, Rtmr2, Rtmr3, MrSeam, MrSignerSeam, MrConfigId, MrOwner, MrOwnerConfig)
    )
    masked = (TdAttributes(bytes(8)), Xfam(bytes(8), mask=bytes(8)))
    return AllOf(NoDebug(), IsvProdId(1), MinIsvSvn(2), ReportData(b"nonce"), HeldData(b"key"), *td, *masked)


def collateral_of(quote: Quote, roots: TrustRoots, now: datetime) -> Collateral:
    """From a service, else from a store."""
    with open_source("intel", SourceOptions(roots=roots, at=now)) as source:
        asked: CollateralSource = source
        found: Collateral = fetch_for_quote(asked, quote, roots)
    save_bundle(found, Path("collateral"))
    with CollateralStore(Path("store.sqlite"), roots=roots) as store:
        return store.collateral(bytes(6), "platform", "sgx", at=now)


def attester(report_data: bytes) -> bytes:
    """In the mode of this process, from a simulated enclave or Intel's platform."""
    enclave: LocalEnclave = launch_enclave(Path("machine.json"), Path("enclave.toml"))
    platform: Platform = open_platform("auto", machine=Path("machine.json"))
    decision = process_mode().decide("auto", environ)
    source: QuoteSource = open_quote_source(decision, enclave=lambda: enclave, in_proc=lambda: platform)
    intel: QuoteSource = open_quote_source(decision, enclave=lambda: enclave, in_proc=IntelDcapPlatform.open_in_proc)
    target: TargetInfo = enclave.target_info
    body: ReportBody = verify_local_report(enclave, enclave.create_report(target, report_data), report_data)
    own: QuoteSource = own_quote_source(machine="machine.json", enclave=Path("enclave.toml"))
    result: QuoteResult = (source if body.isv_svn else own if body.isv_prod_id else intel).quote(report_data)
    return result.quote


def files(collateral: Collateral, evidence: bytes, now: datetime) -> VerifiedQuote:
    """With what a relying party has in files."""
    file: PolicyFile = load_policy("policy.toml")
    verifier = QuoteVerifier(load_trust_roots("root_ca.pem", Path("other.pem")))
    policy: Policy = file.policy(accept_simulated=True)
    return accept_quote(evidence, collateral, policy, now=now, verifier=verifier, grace=file.grace)


def outcome(result: AttestationResult) -> tuple[ExitCode, str]:
    """Exit code and the first finding."""
    checks: tuple[Check, ...] = result.checks
    if result.verified is not None and result.verified.tee is TeeType.TDX:
        return ExitCode.OK, ""
    error: ConfcomError = result.error or ConfigError("none")
    for kind in (FormatError, VerificationError, PolicyError, CollateralError, PlatformError, ProtocolError):
        if isinstance(error, kind):
            return exit_code(error), error.code
    return exit_code(error), checks[0].found
