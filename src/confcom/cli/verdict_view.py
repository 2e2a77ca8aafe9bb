"""The verdict for people: who is this enclave, is it genuine, how current is its platform, what to do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Verdict
from confcom.appraisal.result import AttestationResult, timestamp
from confcom.appraisal.tcb import TcbEvaluation
from confcom.cli.inputs import printable
from confcom.errors import FormatError
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tdx import TdReportBody10, td_base

_HEADLINES: dict[Verdict, tuple[str, str]] = {
    Verdict.ACCEPTED: ("ACCEPTED", "bold green"),
    Verdict.REFUSED: ("REFUSED", "bold red"),
    Verdict.INVALID: ("INVALID", "bold red"),
    Verdict.UNDECIDED: ("UNDECIDED", "bold yellow"),
}

_MEANING: dict[Verdict, str] = {
    Verdict.ACCEPTED: "the evidence is authentic, and everything that was asked of it holds",
    Verdict.REFUSED: "the evidence is authentic, but not acceptable",
    Verdict.INVALID: "this is not authentic evidence: trust nothing that it says",
    Verdict.UNDECIDED: "this cannot be decided with the collateral at hand",
}


def show(result: AttestationResult, now: datetime, *, identity_expected: bool) -> None:
    """Print a result."""
    console = Console(highlight=False, soft_wrap=True)
    word, style = _HEADLINES[result.verdict]
    malformed = isinstance(result.error, FormatError)
    meaning = "this is nothing that can be verified as evidence" if malformed else _MEANING[result.verdict]
    console.print(Text.assemble((word, style), f"  {meaning}"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if result.verified:
        _add_proven(table, result.verified, result.source)
    elif result.evidence:
        quote = result.evidence.quote
        table.add_row("Claims", f"to be a quote v{quote.header.version} of {quote.tee.name}; nothing of it was proven")
    table.add_row("Judged", f"as of {timestamp(now)}")
    console.print(table)
    _show_problems(console, result)
    if result.verdict is Verdict.ACCEPTED and not identity_expected and result.verified:
        what, how = (
            ("enclave", "--mr-enclave, or with --mr-signer and --isv-prod-id")
            if result.verified.tee is TeeType.SGX
            else ("TD", "--mr-td and --rtmr0 to --rtmr3")
        )
        console.print(f"Note: nothing was said about who the {what} should be. Pin it with {how}.", style="yellow")


def show_sets(sets: list[dict[str, Any]]) -> None:
    """Print what the verdict is under each set of collateral."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text("Under each set", style="bold"))
    for found in sets:
        number = found["tcb_evaluation_data_number"]
        status = found["tcb_status"] or "no TCB status"
        what = f"TCB evaluation {number}, {status}" if number is not None else found["error"]["message"]
        console.print(Text(f"  {found['update']}: {found['verdict']} ({printable(what)})"))


def _add_proven(table: Table, verified: VerifiedQuote, source: str) -> None:
    for label, value in (*_who(verified), *_genuine(verified), *_platform(verified)):
        table.add_row(label, printable(value))
    table.add_row("Says", f"report data {verified.report_data.hex()}")
    collateral = verified.collateral
    table.add_row(
        "Collateral",
        f"TCB evaluation {verified.tcb_evaluation_data_number}, first expiry "
        f"{timestamp(collateral.earliest_expiration)}, from {printable(source)}",
    )


def _who(verified: VerifiedQuote) -> list[tuple[str, str]]:
    body = verified.quote.body
    if isinstance(body, ReportBody):
        debug = "DEBUG ON (its memory is open to the host)" if body.attributes.debug else "debug off"
        return [
            ("Who", f"enclave (MRENCLAVE) {body.mr_enclave.hex()}"),
            ("", f"signer (MRSIGNER)   {body.mr_signer.hex()}"),
            ("", f"product {body.isv_prod_id}, security version {body.isv_svn}, {debug}"),
        ]
    td = td_base(body)
    return [
        ("Who", f"TD (MRTD) {td.mr_td.hex()}"),
        *(("", f"{name} {value.hex()}") for name, value in _rtmrs(td)),
        ("", f"TDX module (MRSEAM) {td.mr_seam.hex()}"),
        ("", "DEBUG ON (its memory is open to the host)" if td.debug else "debug off"),
    ]


def _rtmrs(td: TdReportBody10) -> tuple[tuple[str, bytes], ...]:
    return ("RTMR0", td.rtmr0), ("RTMR1", td.rtmr1), ("RTMR2", td.rtmr2), ("RTMR3", td.rtmr3)


def _genuine(verified: VerifiedQuote) -> list[tuple[str, str]]:
    if verified.simulated:
        return [
            ("Genuine", f"SIMULATED: signed under {verified.root.name}, which is not Intel's. No hardware protects it.")
        ]
    return [("Genuine", f"yes: every signature leads to {verified.root.name}")]


def _platform(verified: VerifiedQuote) -> list[tuple[str, str]]:
    tcb = verified.tcb
    rows = [("Platform", f"FMSPC {verified.pck.fmspc.hex().upper()}, {_tcb(tcb)}")]
    if tcb.launch and tcb.current:
        rows += [("", f"TDX module at launch: {_tcb(tcb.launch)}"), ("", f"TDX module now: {_tcb(tcb.current)}")]
    if tcb.advisory_ids:
        rows.append(("", f"open advisories: {', '.join(tcb.advisory_ids)}"))
    return rows


def _tcb(tcb: TcbEvaluation) -> str:
    if tcb.status is None:
        return f"no TCB level of Intel's list is as low as this {tcb.missing}"
    return f"TCB {tcb.status.value}, level of {tcb.tcb_date:%Y-%m-%d}"


def _show_problems(console: Console, result: AttestationResult) -> None:
    wrong = [check for check in result.checks if not check.ok]
    if result.error and not wrong:
        console.print(Text("Problem", style="bold"))
        console.print(Text(f"  {printable(result.error.message or str(result.error))}"))
        console.print(Text(f"  what to do: {printable(result.error.advice())}"))
        return
    if wrong:
        console.print(Text("Problems" if len(wrong) > 1 else "Problem", style="bold"))
    if wrong and result.verified is None and result.error:
        console.print(Text(f"  {printable(str(result.error))}"))
    for number, check in enumerate(wrong, 1):
        console.print(Text(f"  {number}. {check.id}: expected {printable(check.expected)}"))
        console.print(Text(f"     found {printable(check.found)}"))
        if check.advice:
            console.print(Text(f"     what to do: {printable(check.advice)}"))
