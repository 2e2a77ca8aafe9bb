"""The public API's types: this file is never run, it only has to type-check."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from confcom import (
    AcceptTcb,
    AllOf,
    AnyOf,
    Appraisal,
    AttestationResult,
    Collateral,
    MrEnclave,
    MrSigner,
    Quote,
    QuoteVerifier,
    TcbStatus,
    TrustRoot,
    TrustRoots,
    Verdict,
    VerifiedQuote,
    accept_quote,
    appraise,
    judge,
    load_bundle,
    safe_defaults,
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
