"""Judges authentic evidence: acceptable under a policy, with collateral that is valid now, or not."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from confcom.appraisal.findings import Check, Verdict, finding
from confcom.appraisal.policy import Policy, checked_policy, with_safe_defaults
from confcom.appraisal.quote import VerifiedQuote
from confcom.errors import (
    ConfcomError,
    ConfigError,
    PolicyError,
    StaleCollateralError,
    TcbNotSupportedError,
    TcbRevokedError,
)
from confcom.formats.arguments import checked_type
from confcom.formats.tcb_info import TcbStatus
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
    expected = f"valid at {_time(now)}"
    found: list[Check] = []
    for windows, where, advice in ((theirs, f"from {source}", _STALE_ADVICE), (own, "in the quote", _OWN_ADVICE)):
        if windows:
            forgiven = all(window.not_after is not None and now <= window.not_after + grace for window in windows)
            ends = ", ".join(f"{window.what} at {_time(window.not_after)}" for window in windows)
            within = f", within the grace of {grace.days} days" if forgiven else ""
            found.append(finding(FRESHNESS, forgiven, expected, f"expired: {ends}, {where}{within}", advice))
    if early:
        starts = ", ".join(f"{window.what} from {_time(window.not_before)}" for window in early)
        found.append(finding(FRESHNESS, False, expected, f"not valid yet: {starts}", _EARLY_ADVICE))
    return tuple(found)


def _time(time: datetime | None) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
