"""`confcom verify`: whether evidence is authentic and acceptable."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from confcom.appraisal.policy import AllOf, HeldData, Policy, ReportData
from confcom.appraisal.policy_file import IDENTITY_KEYS, MAX_POLICY, PolicyFile, parse_policy
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, failed, judge, read_evidence
from confcom.cli.collateral_options import choose_collateral, parse_update, trust_roots
from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.inputs import parse_hex, parse_time, read_input
from confcom.errors import CollateralError, ConfcomError, ConfigError, FormatError, VerificationError
from confcom.formats.evidence import MAX_EVIDENCE, EvidenceFile
from confcom.formats.quote import TeeType
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.certificate import MAX_PEM

MAX_HELD_DATA = 16 * 1024 * 1024
"""Bytes of held data that are hashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """The options of the command line, as given."""

    evidence: Path
    collateral: str | None
    collateral_ca: Path | None
    pck_chain: Path | None
    at: str | None
    update: str
    trust_root: tuple[str, ...]
    policy: Path | None
    identity: dict[str, Any]
    """What the options say under the names of the policy file's keys; None or an empty tuple: nothing."""
    report_data: str | None
    held_data: Path | None
    accept_tcb: str | None
    allow_debug: bool
    as_json: bool


_FILE = click.Path(path_type=Path, allow_dash=True)

_TD_OPTIONS = (
    ("--mr-td", "HEX", "TDs: accept this initial image (MRTD)."),
    *((f"--rtmr{n}", "HEX", f"TDs: accept this value of RTMR{n}.") for n in range(4)),
    ("--mr-seam", "HEX", "TDs: accept this TDX module."),
    ("--mr-signer-seam", "HEX", "TDs: accept this signer of the TDX module; zeros: Intel."),
    ("--mr-config-id", "HEX", "TDs: accept this MRCONFIGID."),
    ("--mr-owner", "HEX", "TDs: accept this MROWNER."),
    ("--mr-owner-config", "HEX", "TDs: accept this MROWNERCONFIG."),
    ("--td-attributes", "HEX[/MASK]", "TDs: TDATTRIBUTES, 8 bytes as --json shows them."),
    ("--xfam", "HEX[/MASK]", "TDs: XFAM, 8 bytes as --json shows them."),
)


def _td_options(command: Callable[..., int]) -> Callable[..., int]:
    for name, metavar, text in reversed(_TD_OPTIONS):
        several = metavar == "HEX"
        help_text = f"{text} Repeatable." if several else text
        command = click.option(name, metavar=metavar, multiple=several, help=help_text)(command)
    return command


@click.command()
@click.argument("evidence", type=_FILE)
@click.option(
    "--collateral",
    metavar="PATH-OR-URL",
    help="Folder, collateral.json, store, or URL of a collateral service; also intel, pccs, thim. Default: your store.",
)
@click.option(
    "--collateral-ca",
    metavar="PEM",
    type=click.Path(path_type=Path),
    help="CAs that the TLS certificate of a collateral service may be of. Default: public ones.",
)
@click.option(
    "--pck-chain",
    metavar="PEM",
    type=_FILE,
    help="PCK certificate chain of a quote that only names its platform (certification data of type 1 to 3).",
)
@click.option("--at", metavar="RFC3339", help="Judge as of this time, e.g. 2026-03-01T12:00:00Z. Default: now.")
@click.option(
    "--update",
    metavar="SET,…",
    default="standard",
    help="From a store or service: standard, early, or a TCB evaluation number. The first decides, all are shown.",
)
@click.option(
    "--trust-root",
    metavar="PEM",
    multiple=True,
    help="Trust this root instead of Intel's (a simulated platform). Repeatable; the word 'intel' adds Intel's.",
)
@click.option(
    "--policy",
    metavar="FILE",
    type=_FILE,
    help="Policy file (TOML, YAML or JSON); options given here replace its keys.",
)
@click.option("--mr-enclave", metavar="HEX", multiple=True, help="Accept this build. Repeatable.")
@click.option("--mr-signer", metavar="HEX", multiple=True, help="Accept this signer. Repeatable.")
@click.option("--isv-prod-id", metavar="N", type=click.IntRange(0, 0xFFFF), help="The signer's product id.")
@click.option("--min-isv-svn", metavar="N", type=click.IntRange(0, 0xFFFF), help="The lowest security version.")
@_td_options
@click.option("--report-data", metavar="HEX", help="The report data begins with these bytes.")
@click.option("--held-data", metavar="FILE", type=_FILE, help="The report data begins with this file's SHA-256.")
@click.option("--accept-tcb", metavar="STATUS,…", help="TCB statuses that are good enough. Default: UpToDate.")
@click.option("--allow-debug", is_flag=True, help="Accept debug enclaves and TDs, whose memory is open.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(**options: Any) -> int:  # noqa: ANN401 - click fills VerifyOptions, which has the types
    """Verify and appraise EVIDENCE: a quote, an Open Enclave report or Open Enclave evidence; binary, hex or base64.

    Accepted (exit 0) means: authentic under the trusted root, collateral valid at the time, TCB good enough, debug
    off, and every expectation given here met. '-' reads standard input.
    """
    given = VerifyOptions(identity={name: options.pop(name) for name in IDENTITY_KEYS}, **options)
    try:
        now = parse_time(given.at, "--at")
        file = _expectations(given)
        results = _judge(given, file, now)
    except ConfcomError as error:
        if not given.as_json:
            raise
        # Nothing was judged: the verdict of the object is null.
        click.echo(json.dumps(failed(error).as_dict() | {"verdict": None}, indent=2))
        return exit_code(error)
    result = next(iter(results.values()))
    if given.as_json:
        click.echo(json.dumps(result.as_dict() | (_sets(results) if len(results) > 1 else {}), indent=2))
    else:
        from confcom.cli.verdict_view import show, show_sets

        show(result, now, identity_expected=any(file.keys_of(tee) for tee in TeeType))
        if len(results) > 1:
            show_sets(_sets(results)["sets"])
    return exit_code(result.error) if result.error else ExitCode.OK


def _sets(results: dict[str, AttestationResult]) -> dict[str, list[dict[str, Any]]]:
    """What the verdict is under each set that was asked for."""
    kept = ("verdict", "tcb_status", "tcb_date", "advisory_ids", "tcb_evaluation_data_number", "error")
    return {"sets": [{"update": name} | {k: result.as_dict()[k] for k in kept} for name, result in results.items()]}


def _judge(given: VerifyOptions, file: PolicyFile, now: datetime) -> dict[str, AttestationResult]:
    roots = trust_roots(given.trust_root)
    policy = _policy(given, file, accept_simulated=any(root.simulated for root in roots.roots))
    updates = {text.strip(): parse_update(text.strip()) for text in given.update.split(",")}
    data = read_input(given.evidence, MAX_EVIDENCE, "evidence")
    pck_chain = read_input(given.pck_chain, MAX_PEM, "PCK chain") if given.pck_chain else None
    verifier = QuoteVerifier(roots)
    first = next(iter(updates))
    results: dict[str, AttestationResult] = {}
    evidence: EvidenceFile | None = None
    try:
        # Before the collateral, so that a file that is no evidence is named first.
        evidence = read_evidence(data)
        with choose_collateral(given.collateral, roots, now, ca=given.collateral_ca, pck_chain=pck_chain) as choice:
            for name, update in updates.items():
                collateral = choice.collateral(evidence.quote, update)
                results[name] = judge(data, collateral, verifier=verifier, policy=policy, now=now, grace=file.grace)
    except (FormatError, VerificationError, CollateralError) as error:
        # A later set that cannot be had does not take the verdict of the first away.
        missing = next((name for name in updates if name not in results), first)
        results[missing] = failed(error, evidence=evidence, source=given.collateral or "")
    return results


def _expectations(given: VerifyOptions) -> PolicyFile:
    """The policy file, with the keys replaced that the command line names."""
    file = PolicyFile()
    if given.policy:
        file = parse_policy(read_input(given.policy, MAX_POLICY, "policy"), name=given.policy.name)
    named = {
        **given.identity,
        "accept_tcb": _statuses(given.accept_tcb),
        "allow_debug": given.allow_debug,
    }
    return msgspec.structs.replace(file, **{key: value for key, value in named.items() if _is_given(value)})


def _policy(given: VerifyOptions, file: PolicyFile, *, accept_simulated: bool) -> Policy:
    policies: list[Policy] = [file.policy(accept_simulated=accept_simulated)]
    if given.report_data is not None:
        policies.append(ReportData(parse_hex(given.report_data, "--report-data", most=64)))
    if given.held_data is not None:
        policies.append(HeldData(read_input(given.held_data, MAX_HELD_DATA, "held data")))
    return AllOf(*policies)


def _is_given(value: object) -> bool:
    # 0 is a product id and a security version, so truth is not the question.
    return value is not None and value is not False and value != ()


def _statuses(text: str | None) -> tuple[TcbStatus, ...]:
    if text is None:
        return ()
    try:
        return tuple(TcbStatus(name.strip()) for name in text.split(","))
    except ValueError as error:
        known = ", ".join(status for status in TcbStatus)
        raise ConfigError(f"--accept-tcb: {error}; known are {known}") from error
