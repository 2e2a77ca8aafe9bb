"""Judges authentic evidence: acceptable under a policy, with collateral that is valid now, or not."""

from __future__ import annotations

from dataclasses import dataclass

from confcom.appraisal.collateral import Window
from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check
from confcom.appraisal.policy import Policy
from confcom.appraisal.verdict import Verdict
from confcom.errors import ConfcomError, PolicyError, StaleCollateralError, TcbNotSupportedError

FRESHNESS = "collateral-fresh"


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a policy found. Stale collateral leaves the question open, whatever else was found."""

    verified: VerifiedQuote
    findings: tuple[Check, ...]
    verdict: Verdict

    def error(self) -> ConfcomError | None:
        """Why the evidence is not accepted; None when it is."""
        if self.verdict is Verdict.ACCEPTED:
            return None
        wrong = [finding for finding in self.findings if not finding.ok]
        if self.verdict is Verdict.UNDECIDED:
            stale = [finding for finding in wrong if finding.id == FRESHNESS]
            return StaleCollateralError(
                "the collateral is not valid at the time of judgement: " + "; ".join(item.found for item in stale),
                step=FRESHNESS,
            )
        message = "; ".join(f"{item.id}: expected {item.expected}, found {item.found}" for item in wrong)
        kind = TcbNotSupportedError if self.verified.tcb_status is None else PolicyError
        return kind(f"authentic, but not acceptable: {message}", advice=" ".join(item.advice for item in wrong))

    def require(self) -> VerifiedQuote:
        """The verified quote, or the error that says why it is not accepted."""
        if error := self.error():
            raise error
        return self.verified


def appraise(verified: VerifiedQuote, policy: Policy) -> Appraisal:
    """Apply a policy; every finding is collected, nothing stops at the first."""
    findings = policy.check(verified) + tuple(_stale(verified, window) for window in verified.stale)
    if verified.stale:
        verdict = Verdict.UNDECIDED
    elif all(finding.ok for finding in findings):
        verdict = Verdict.ACCEPTED
        findings += (Check(FRESHNESS, ok=True, expected="valid now", found="valid"),)
    else:
        verdict = Verdict.REFUSED
    return Appraisal(verified, findings, verdict)


def _stale(verified: VerifiedQuote, window: Window) -> Check:
    early = verified.verified_at < window.not_before
    bound = window.not_before if early else window.not_after
    verb = "is valid only from" if early else "expired at"
    return Check(
        FRESHNESS,
        ok=False,
        expected=f"valid at {verified.verified_at:%Y-%m-%dT%H:%M:%SZ}",
        found=f"{window.what} {verb} {bound:%Y-%m-%dT%H:%M:%SZ}",
        advice=StaleCollateralError.default_advice,
    )
