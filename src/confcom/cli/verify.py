"""`confcom verify`: whether evidence is authentic and acceptable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from confcom.cli.options import (
    COLLATERAL_VARIABLE,
    FILE,
    POLICY_VARIABLE,
    STREAM,
    identity_options,
    output_options,
    trust_root_option,
)

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
@click.argument("evidence", type=STREAM, required=False)
@click.option(
    "--certificate",
    metavar="FILE",
    type=STREAM,
    help="Instead of EVIDENCE: a certificate (PEM or DER) with evidence for its own key, of any known format.",
)
@click.option(
    "--connect",
    metavar="HOST:PORT",
    help="Instead of EVIDENCE: the certificate that this TLS server shows; its name is not checked.",
)
@click.option(
    "--collateral",
    metavar="PATH-OR-URL",
    envvar=COLLATERAL_VARIABLE,
    help="Folder, collateral.json, store, or URL of a collateral service; also intel, pccs, thim. "
    f"Default: ${COLLATERAL_VARIABLE}, else your store.",
)
@click.option(
    "--collateral-ca",
    metavar="PEM",
    type=FILE,
    help="CAs of a collateral service's TLS certificate. Default: public ones.",
)
@click.option(
    "--pck-chain",
    metavar="PEM",
    type=STREAM,
    help="PCK certificate chain of a quote that only names its platform (certification data of type 1 to 3).",
)
@click.option("--at", metavar="RFC3339", help="Judge as of this time, e.g. 2026-03-01T12:00:00Z. Default: now.")
@click.option(
    "--update",
    metavar="SET,…",
    default="standard",
    help="From a store or service: standard, early, or a TCB evaluation number. The first decides, all are shown.",
)
@trust_root_option
@click.option(
    "--policy",
    metavar="FILE",
    type=STREAM,
    envvar=POLICY_VARIABLE,
    help=f"Policy file (TOML, YAML or JSON); options given here replace its keys. Default: ${POLICY_VARIABLE}.",
)
@identity_options
@_td_options
@click.option("--report-data", metavar="HEX", help="The report data begins with these bytes.")
@click.option("--held-data", metavar="FILE", type=STREAM, help="The report data begins with this file's SHA-256.")
@click.option("--accept-tcb", metavar="STATUS,…", help="TCB statuses that are good enough. Default: UpToDate.")
@click.option("--allow-debug", is_flag=True, help="Accept debug enclaves and TDs: their memory is open.")
@click.option("--html", metavar="FILE", type=FILE, help="Also write the report as one HTML file.")
@output_options
def verify(**options: Any) -> int:  # noqa: ANN401 - `run` has the types
    """Verify and appraise EVIDENCE: a quote, an Open Enclave report or Open Enclave evidence; binary, hex or base64.

    With --certificate or --connect, the evidence must be for the certificate's key, and an identity must be given.

    Accepted (exit 0) means: authentic under the trusted root, collateral valid at the time, TCB good enough, debug
    off, and every expectation given here met. '-' reads standard input.
    """
    from confcom.cli.verdict import run

    return run(**options)
