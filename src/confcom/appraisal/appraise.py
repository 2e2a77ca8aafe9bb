"""Judges authentic evidence: acceptable under a policy, with collateral that is valid now, or not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from confcom.appraisal.collateral import Window
from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check, finding
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
        wrong = [check for check in self.findings if not check.ok]
        if self.verdict is Verdict.UNDECIDED:
            stale = [check for check in wrong if check.id == FRESHNESS]
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


def appraise(verified: VerifiedQuote, policy: Policy, *, grace: timedelta = timedelta()) -> Appraisal:
    """Apply a policy; every finding is collected, nothing stops at the first.

    `grace` is how long after its end collateral is still accepted; what is not valid yet never is.
    """
    fresh = _freshness(verified, grace)
    findings = policy.check(verified) + fresh
    if not all(check.ok for check in fresh):
        verdict = Verdict.UNDECIDED
    elif all(check.ok for check in findings):
        verdict = Verdict.ACCEPTED
    else:
        verdict = Verdict.REFUSED
    return Appraisal(verified, findings, verdict)


def _freshness(verified: VerifiedQuote, grace: timedelta) -> tuple[Check, ...]:
    if not verified.stale:
        return (Check(FRESHNESS, ok=True, expected="valid now", found="valid"),)
    return tuple(_stale(verified, window, grace) for window in verified.stale)


def _stale(verified: VerifiedQuote, window: Window, grace: timedelta) -> Check:
    now, end = verified.verified_at, window.not_after
    early = now < window.not_before
    bound = window.not_before if early else end
    found = f"{window.what} {'is valid only from' if early else 'expired at'} {bound:%Y-%m-%dT%H:%M:%SZ}"
    forgiven = not early and end is not None and now <= end + grace
    if forgiven:
        found += f", within the grace of {grace.days} days"
    advice = StaleCollateralError.default_advice
    return finding(FRESHNESS, forgiven, f"valid at {now:%Y-%m-%dT%H:%M:%SZ}", found, advice)
