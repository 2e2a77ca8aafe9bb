"""`confcom quote`: get a quote on this machine, in the mode that the machine's signs ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from confcom.cli.inputs import parse_hex, printable, read_input
from confcom.cli.outputs import write_output
from confcom.errors import ConfigError, PlatformUnavailable
from confcom.formats.sgx import QeReportInfo
from confcom.platforms.aesm_client import DEFAULT_SOCKET
from confcom.platforms.enclave_quotes import NONCE_SIZE, REPORT_DATA_SIZE
from confcom.platforms.interface import LocalEnclave, Platform
from confcom.platforms.quoting import ModeDecision, QuoteMode, RequestedMode, open_quote_source, process_mode

MAX_HELD_DATA = 16 * 1024 * 1024
"""Bytes of held data that are hashed."""

_NO_ENCLAVE_ADVICE = (
    'On SGX hardware, run the program under Gramine with sgx.remote_attestation = "dcap"; '
    "elsewhere, name a simulated machine with --simulated-machine FILE (`confcom simulate machine`)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteOptions:
    """The options of the command line, as given."""

    report_data: str | None
    held_data: Path | None
    mode: RequestedMode
    socket: Path
    platform: Any
    simulated_machine: Path | None
    enclave: Path | None
    qe_report_nonce: str | None
    output: Path | None
    host: Path


_FILE = click.Path(path_type=Path, allow_dash=True)


@click.command()
@click.option("--report-data", metavar="HEX", help="1 to 64 bytes that the quote is to carry; zeros fill the rest.")
@click.option("--held-data", metavar="FILE", type=_FILE, help="Carry this file's SHA-256 in the first 32 bytes.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "in-proc", "out-of-proc"]),
    default="auto",
    help="Where QE and PCE are. auto: out-of-proc where SGX_AESM_ADDR is set, to whatever value.",
)
@click.option("--socket", metavar="PATH", type=_FILE, default=DEFAULT_SOCKET, show_default=True, help="Quote helper.")
@click.option("--platform", type=click.Choice(["auto", "intel", "simulated"]), default="auto", help="Default: auto.")
@click.option(
    "--simulated-machine", "--machine", metavar="FILE", type=_FILE, help="Run a declared enclave on this machine."
)
@click.option(
    "--enclave", metavar="FILE", type=_FILE, help="Its declaration, or a signed enclave file. Default: a demo enclave."
)
@click.option("--qe-report-nonce", metavar="HEX", help="16 bytes; have the QE report on the quote, and check that.")
@click.option("-o", "--output", metavar="FILE", type=_FILE, help="Write the quote there, binary.")
@click.option("--host", metavar="FOLDER", type=_FILE, default=Path("/"), hidden=True, help="Where /dev is.")
def quote(**options: Any) -> None:  # noqa: ANN401 - click fills QuoteOptions, which has the types
    """Get a quote on this machine, and say in one line which mode was chosen and why.

    Without -o the quote goes to standard output: binary, or base64 where that is a terminal.
    """
    given = QuoteOptions(**options)
    report_data, nonce = _report_data(given), _nonce(given.qe_report_nonce)
    decision = process_mode().decide(given.mode, os.environ, given.host)
    click.echo(f"confcom: {printable(str(decision))}{_whose(given)}", err=True)
    _refuse_two_enclaves(given, decision)
    enclave = None if decision.mode is QuoteMode.GRAMINE else _enclave(given)
    source = open_quote_source(
        decision,
        enclave=lambda: _present(enclave),
        in_proc=lambda: _platform(given),
        socket=given.socket,
        host=given.host,
        simulated=enclave is not None,
    )
    result = source.quote(report_data, nonce=nonce)
    if result.qe_report_info is not None:
        _check_qe_report(_present(enclave), result.qe_report_info)
    write_output(given.output, result.quote, "quote")


def _report_data(given: QuoteOptions) -> bytes:
    if (given.report_data is None) == (given.held_data is None):
        raise ConfigError(
            "a quote carries something: give --report-data or --held-data, one of them",
            advice="For a first try: --report-data 00. In earnest it is the verifier's nonce, or a key's hash.",
        )
    if given.report_data is not None:
        return parse_hex(given.report_data, "--report-data", most=REPORT_DATA_SIZE).ljust(REPORT_DATA_SIZE, b"\0")
    held = read_input(given.held_data or Path("-"), MAX_HELD_DATA, "held data")
    return sha256(held).digest().ljust(REPORT_DATA_SIZE, b"\0")


def _nonce(digits: str | None) -> bytes | None:
    if digits is None:
        return None
    nonce = parse_hex(digits, "--qe-report-nonce", most=NONCE_SIZE)
    if len(nonce) != NONCE_SIZE:
        raise ConfigError(f"--qe-report-nonce: expected {NONCE_SIZE} bytes, found {len(nonce)}")
    return nonce


def _whose(given: QuoteOptions) -> str:
    if given.simulated_machine is None:
        return ""
    enclave = printable(str(given.enclave)) if given.enclave is not None else "a demo enclave"
    return f"; SIMULATED machine {printable(str(given.simulated_machine))}, {enclave}"


def _enclave(given: QuoteOptions) -> LocalEnclave | None:
    """The simulated enclave; None on hardware, where only the process itself could be one."""
    # Here, because it brings the simulator along, and --help does without.
    from confcom.wiring import choose_platform, declare_enclave, load_declaration, open_machine

    choice = choose_platform(given.platform, machine=given.simulated_machine)
    if choice.name == "simulated":
        if given.simulated_machine is None:
            raise ConfigError(
                "a simulated platform needs a machine file",
                advice="Make one with `confcom simulate machine -o FILE`, and name it with --simulated-machine FILE.",
            )
        declaration = declare_enclave("demo enclave", "demo signer")
        if given.enclave is not None:
            declaration = load_declaration(given.enclave)
        return open_machine(given.simulated_machine).launch(declaration)
    if given.simulated_machine is not None or given.enclave is not None:
        raise ConfigError(
            "an enclave is declared, but no simulated machine runs it",
            advice="Name the machine with --simulated-machine FILE, and leave the platform to auto.",
        )
    return None


def _refuse_two_enclaves(given: QuoteOptions, decision: ModeDecision) -> None:
    if decision.mode is QuoteMode.GRAMINE and (given.simulated_machine or given.enclave):
        raise ConfigError(
            "Gramine runs this process in an enclave of its own, and a simulated one was named too",
            advice="Leave out --simulated-machine and --enclave.",
        )


def _platform(given: QuoteOptions) -> Platform:
    from confcom.wiring import open_platform

    return open_platform(given.platform, machine=given.simulated_machine, host=given.host)


def _present(enclave: LocalEnclave | None) -> LocalEnclave:
    if enclave is None:
        raise PlatformUnavailable("there is no enclave in this process to quote", advice=_NO_ENCLAVE_ADVICE)
    return enclave


def _check_qe_report(enclave: LocalEnclave, info: QeReportInfo) -> None:
    enclave.verify_report(info.qe_report)
    click.echo(f"confcom: the QE itself reported on this quote, for nonce {info.nonce.hex()}", err=True)
