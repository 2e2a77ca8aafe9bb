"""Policies about the platform's TCB: accepted statuses, accepted advisories with an end, the evaluation number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from confcom.appraisal.findings import Check, finding
from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.tcb import TcbEvaluation, shortfalls
from confcom.errors import ConfigError
from confcom.formats.arguments import checked_int, checked_time, checked_values
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbStatus
from confcom.formats.tdx import TdReportBody10, td_base

ACCEPTABLE = frozenset(TcbStatus) - {TcbStatus.REVOKED}
"""Statuses that a policy may accept; Revoked never is."""


@dataclass(frozen=True, slots=True)
class AcceptTcb:
    """Which TCB statuses are good enough; Revoked can never be named."""

    statuses: frozenset[TcbStatus]
    _names: str = field(init=False, repr=False, compare=False)

    def __init__(self, statuses: Iterable[TcbStatus]) -> None:
        try:
            accepted = frozenset(map(TcbStatus, checked_values(statuses, "accepted TCB statuses")))
        except ValueError as error:
            known = ", ".join(TcbStatus)
            raise ConfigError(f"{error}; known are {known}", advice="Name statuses of Intel's list.") from error
        if not accepted:
            raise ConfigError("no TCB status would be accepted", advice="Name at least one status.")
        if not accepted <= ACCEPTABLE:
            raise ConfigError("a revoked TCB is never acceptable", advice="Take Revoked out of the accepted statuses.")
        object.__setattr__(self, "statuses", accepted)
        object.__setattr__(self, "_names", " or ".join(wanted.value for wanted in TcbStatus if wanted in accepted))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding, of TDX 1.5 another for the module that runs now; when not ok, one more for every SVN too low."""
        tcb, status = verified.tcb, verified.tcb_status
        checks = [self._judge("tcb-status", status in self.statuses, tcb, verified.tee)]
        # A converged status that differs from the launch's covers the current module too.
        if tcb.current and tcb.launch and status is tcb.launch.status:
            ok = tcb.current.status in (*self.statuses, TcbStatus.UP_TO_DATE)
            checks.append(self._judge("tcb-status-current", ok, tcb.current, verified.tee))
        if all(check.ok for check in checks):
            return tuple(checks)
        return (*checks, *_explain(verified), *_explain_levels(verified))

    def _judge(self, identifier: str, ok: bool, tcb: TcbEvaluation, tee: TeeType) -> Check:
        return Check(identifier, ok, self._names, _describe(tcb), "" if ok else _advice(tcb, tee))


@dataclass(frozen=True, slots=True)
class AcceptAdvisories:
    """Of the advisories that are open on the platform, only these are accepted, each until its date (exclusive)."""

    until: Mapping[str, datetime]

    def __post_init__(self) -> None:
        if not isinstance(self.until, Mapping):
            raise TypeError(f"AcceptAdvisories: expected advisories with dates, found {type(self.until).__name__}")
        for advisory, end in self.until.items():
            checked_time(end, f"the date of {advisory}")
        object.__setattr__(self, "until", dict(self.until))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding per open advisory; none when none is open."""
        return tuple(self._judge(advisory, verified.verified_at) for advisory in verified.tcb.advisory_ids)

    def _judge(self, advisory: str, now: datetime) -> Check:
        end = self.until.get(advisory)
        if end is None:
            found = f"{advisory} is open and not accepted"
        elif now >= end:
            found = f"{advisory} was accepted until {end:%Y-%m-%d}"
        else:
            found = f"{advisory} is accepted until {end:%Y-%m-%d}"
        advice = f"Read {advisory}; mitigate it, or accept it in the policy until a date."
        return finding("advisory", end is not None and now < end, "no advisory that is not accepted", found, advice)


@dataclass(frozen=True, slots=True)
class MinTcbEvaluation:
    """The collateral has at least this TCB evaluation data number, so that no old list decides."""

    number: int

    def __post_init__(self) -> None:
        checked_int(self.number, "TCB evaluation data number", 32)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = verified.tcb_evaluation_data_number
        return (
            finding(
                "tcb-evaluation-data-number",
                found >= self.number,
                f"TCB evaluation {self.number} or later",
                f"TCB evaluation {found}",
                "Fetch newer collateral (Intel: update=early, or a number).",
            ),
        )


def _tee_tcb_svns(verified: VerifiedQuote) -> tuple[bytes | None, ...]:
    """Of a TD: at launch and, for TDX 1.5, now."""
    body = verified.quote.body
    if isinstance(body, ReportBody):
        return (None,)
    launch = td_base(body).tee_tcb_svn
    return (launch,) if isinstance(body, TdReportBody10) else (launch, body.tee_tcb_svn2)


def _describe(tcb: TcbEvaluation) -> str:
    if tcb.status is None:
        return f"no TCB level of Intel's list is as low as this {tcb.missing}"
    found = f"{tcb.status.value}, level of {tcb.tcb_date and tcb.tcb_date.date()}"
    return f"{found}, advisories {', '.join(tcb.advisory_ids)}" if tcb.advisory_ids else found


def _explain(verified: VerifiedQuote) -> Iterator[Check]:
    """Every SVN that is too low; what is so at launch and now is said once."""
    info = verified.collateral.tcb_info
    found = (shortfalls(verified.pck.tcb, svns, info) for svns in _tee_tcb_svns(verified))
    for item in dict.fromkeys(chain.from_iterable(found)):
        expected = f"{item.name} at least {item.needed}, for {item.level_status.value} of {item.level_date:%Y-%m-%d}"
        yield finding("tcb-component", False, expected, f"{item.found}", item.sentence())


def _explain_levels(verified: VerifiedQuote) -> Iterator[Check]:
    """The QE and the TDX modules, when it is they that are behind."""
    tcb, qe_report = verified.tcb, verified.quote.signature.certification.qe_report
    if tcb.qe is None or tcb.qe.tcb_status is not TcbStatus.UP_TO_DATE:
        best = verified.collateral.qe_identity.tcb_levels[0].isv_svn
        where = ": on a node, the quote helper; in-proc, the application's image" if verified.tee is TeeType.SGX else ""
        advice = f"Update the quoting enclave{where}."
        yield finding("qe-isv-svn", False, f"quoting enclave's ISVSVN {best}", str(qe_report.isv_svn), advice)
    for what, evaluation in (("TDX module", tcb), ("TDX module that runs now", tcb.current)):
        level = evaluation.tdx_module if evaluation else None
        if level is not None and level.tcb_status is not TcbStatus.UP_TO_DATE:
            found = f"level {level.isv_svn}, {level.tcb_status.value}"
            yield finding("tdx-module", False, f"a {what} that is up to date", found, "Update the TDX module.")


def _advice(tcb: TcbEvaluation, tee: TeeType) -> str:
    if tcb.status is TcbStatus.REVOKED:
        return "Intel revoked this TCB level: the platform must not be trusted until it has been updated."
    if tcb.status is None:
        return f"Update {tcb.behind}; nothing accepts this."
    if "OutOfDate" in tcb.status:
        return f"Update {tcb.behind}; until then, accept the status on purpose with --accept-tcb."
    if "Relaunch" in tcb.status:
        return "Start the TD again: the TDX module was updated under it."
    who = "the enclave" if tee is TeeType.SGX else "the TD"
    check, source = ("named advisories", "they say") if tcb.advisory_ids else ("platform", "Intel says of this status")
    return (
        f"Check the {check}: {who} must be hardened or the platform configured as {source}; "
        "then accept the status on purpose with --accept-tcb."
    )
