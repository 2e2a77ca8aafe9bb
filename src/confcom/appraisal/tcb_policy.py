"""Policies about the platform's TCB: accepted statuses, accepted advisories with an end, the evaluation number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check, finding
from confcom.appraisal.tcb_shortfall import Shortfall, shortfalls
from confcom.errors import ConfigError
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbStatus
from confcom.formats.tdx import td_base

ACCEPTABLE = frozenset(TcbStatus) - {TcbStatus.REVOKED}
"""Statuses that a policy may accept; Revoked never is."""


@dataclass(frozen=True, slots=True)
class AcceptTcb:
    """Which TCB statuses are good enough; Revoked can never be named."""

    statuses: frozenset[TcbStatus]

    def __init__(self, statuses: Iterable[TcbStatus]) -> None:
        accepted = frozenset(statuses)
        if not accepted:
            raise ConfigError("no TCB status would be accepted", advice="Name at least one status.")
        if not accepted <= ACCEPTABLE:
            raise ConfigError("a revoked TCB is never acceptable", advice="Take Revoked out of the accepted statuses.")
        object.__setattr__(self, "statuses", accepted)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding; when it is not ok, one more for every SVN that keeps the platform from being up to date."""
        status = verified.tcb_status
        names = " or ".join(wanted.value for wanted in TcbStatus if wanted in self.statuses)
        ok = status in self.statuses
        missing = (
            () if ok else tuple(shortfalls(verified.pck.tcb, _tee_tcb_svn(verified), verified.collateral.tcb_info))
        )
        verdict = finding("tcb-status", ok, names, _describe(verified), _advice(status))
        return (verdict, *_explain(missing), *(() if ok else _explain_levels(verified)))


@dataclass(frozen=True, slots=True)
class AcceptAdvisories:
    """Of the advisories that are open on the platform, only these are accepted, each until its date (exclusive)."""

    until: Mapping[str, datetime]

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
    """The collateral is of this TCB evaluation data number at least: nobody is judged by an old list."""

    number: int

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


def _tee_tcb_svn(verified: VerifiedQuote) -> bytes | None:
    body = verified.quote.body
    return None if isinstance(body, ReportBody) else td_base(body).tee_tcb_svn


def _describe(verified: VerifiedQuote) -> str:
    tcb = verified.tcb
    if tcb.status is None:
        return f"no TCB level of Intel's list is as low as this {tcb.missing}"
    found = f"{tcb.status.value}, level of {tcb.tcb_date:%Y-%m-%d}"
    return f"{found}, advisories {', '.join(tcb.advisory_ids)}" if tcb.advisory_ids else found


def _explain(missing: tuple[Shortfall, ...]) -> Iterator[Check]:
    for item in missing:
        expected = f"{item.name} at least {item.needed}, for {item.level_status.value} of {item.level_date:%Y-%m-%d}"
        yield finding("tcb-component", False, expected, f"{item.found}", item.sentence())


def _explain_levels(verified: VerifiedQuote) -> Iterator[Check]:
    """The QE and the TDX module, when it is they that are behind."""
    tcb, qe_report = verified.tcb, verified.quote.signature.certification.qe_report
    if tcb.qe is None or tcb.qe.tcb_status is not TcbStatus.UP_TO_DATE:
        best = verified.collateral.qe_identity.tcb_levels[0].isv_svn
        advice = "Update the quoting enclave: on a node, the quote helper; in-proc, the application's image."
        yield finding("qe-isv-svn", False, f"quoting enclave's ISVSVN {best}", str(qe_report.isv_svn), advice)
    if tcb.tdx_module is not None and tcb.tdx_module.tcb_status is not TcbStatus.UP_TO_DATE:
        found = f"level {tcb.tdx_module.isv_svn}, {tcb.tdx_module.tcb_status.value}"
        yield finding("tdx-module", False, "a TDX module that is up to date", found, "Update the TDX module.")


def _advice(status: TcbStatus | None) -> str:
    if status is TcbStatus.REVOKED:
        return "Intel revoked this TCB level: the platform must not be trusted until it has been updated."
    if status is None or "OutOfDate" in status:
        return (
            "Update BIOS and microcode of the platform and let it fetch a new PCK certificate; "
            "until then, accept the status on purpose with --accept-tcb."
        )
    if "Relaunch" in status:
        return "Start the TD again: the TDX module was updated under it."
    return (
        "Check the named advisories: the enclave must be hardened or the platform configured as they say; "
        "then accept the status on purpose with --accept-tcb."
    )
