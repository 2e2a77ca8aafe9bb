"""A verdict in words: what it means, who was judged, how current the platform is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.peer import certificate_facts
from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.result import AttestationResult, timestamp
from confcom.appraisal.tcb import TcbEvaluation
from confcom.errors import FormatError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody, td_base

_MEANINGS: dict[Verdict, str] = {
    Verdict.ACCEPTED: "the evidence is authentic, and everything that was asked of it holds",
    Verdict.REFUSED: "the evidence is authentic, but not acceptable",
    Verdict.INVALID: "this is not authentic evidence: trust nothing that it says",
    Verdict.UNDECIDED: "this cannot be decided with the collateral at hand",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a person reads first. `rows` are pairs of label and text; a label is empty where it repeats.

    `problem` and `advice` are of an error that no check names; `problems` are the checks that failed. Text is as
    found: a printer must make it safe for its medium.
    """

    verdict: Verdict
    meaning: str
    rows: tuple[tuple[str, str], ...]
    problem: str
    advice: str
    problems: tuple[Check, ...]
    note: str

    @classmethod
    def of(cls, result: AttestationResult, now: datetime, *, identity_expected: bool) -> Summary:
        """The summary of a result as of `now`; `identity_expected` says whether a policy names an identity."""
        meaning = _MEANINGS[result.verdict]
        if isinstance(result.error, FormatError):
            meaning = "this is not evidence that can be verified"
        rows: list[tuple[str, str]] = []
        if result.certificate:
            rows += _certificate(result.certificate, proven=result.verified is not None)
        if result.verified:
            rows += _proven(result.verified, result.source)
        elif result.evidence:
            quote = result.evidence.quote
            claimed = f"to be a quote v{quote.header.version} of {quote.tee.name}"
            rows.append(("Claims", f"{claimed}; nothing of it was proven"))
        rows.append(("Judged", f"as of {timestamp(now)}"))
        problems = tuple(check for check in result.checks if not check.ok)
        problem = advice = ""
        if result.error and not problems:
            problem, advice = str(result.error.message or result.error), result.error.advice()
        elif result.error and result.verified is None:
            problem = str(result.error)
        unnamed = result.verdict is Verdict.ACCEPTED and not identity_expected and result.verified
        note = _identity_note(unnamed.tee) if unnamed else ""
        return cls(result.verdict, meaning, tuple(rows), problem, advice, problems, note)


def _identity_note(tee: TeeType) -> str:
    what, how = (
        ("enclave", "--mr-enclave, or with --mr-signer and --isv-prod-id")
        if tee is TeeType.SGX
        else ("TD", "--mr-td and --rtmr0 to --rtmr3")
    )
    return f"Note: nothing was said about the identity of the {what}. Pin it with {how}."


def _certificate(certificate: AttestedCertificate, *, proven: bool) -> list[tuple[str, str]]:
    facts = certificate_facts(certificate)
    binding = f"bound by {facts['binding']} in the report data" if proven else "not proven to be the enclave's"
    return [
        ("Key", f"SHA-256 {facts['public_key_sha256']}, {binding}"),
        ("", f"certificate of format {facts['format']}, {facts['not_before']} to {facts['not_after']}"),
    ]


def _proven(verified: VerifiedQuote, source: str) -> list[tuple[str, str]]:
    expires = timestamp(verified.collateral.earliest_expiration)
    number = verified.tcb_evaluation_data_number
    return [
        *_who(verified),
        *_genuine(verified),
        *_platform(verified),
        ("Says", f"report data {verified.report_data.hex()}"),
        ("Collateral", f"TCB evaluation {number}, first expiry {expires}, from {source}"),
    ]


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
        *(("", f"RTMR{n} {value.hex()}") for n, value in enumerate((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3))),
        ("", f"TDX module (MRSEAM) {td.mr_seam.hex()}"),
        ("", "DEBUG ON (its memory is open to the host)" if td.debug else "debug off"),
    ]


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
