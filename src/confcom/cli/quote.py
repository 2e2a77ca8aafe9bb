"""`confcom quote`: get a quote on this machine, in the mode that its environment selects."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.cli.options import FILE, MAX_HELD_DATA, STREAM, Number, note, parse_hex, read_input, write_output
from confcom.errors import ConfigError, PlatformBusy, PlatformUnavailable

if TYPE_CHECKING:
    from confcom.platforms.interface import LocalEnclave, QuoteResult
    from confcom.platforms.quoting import QuoteSource, RequestedMode

AESM_SOCKET = Path("/var/run/aesmd/aesm.socket")
REPORT_DATA_SIZE = 64
NONCE_SIZE = 16
LOOK_EVERY = 0.2
"""Seconds between two looks at whether the quote helper is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteOptions:
    """The options of the command line, as given."""

    report_data: str | None = None
    held_data: Path | None = None
    mode: RequestedMode = "auto"
    socket: Path = AESM_SOCKET
    platform: Any = "auto"
    simulated_machine: Path | None = None
    enclave: Path | None = None
    qe_report_nonce: str | None = None
    output: Path | None = None
    wait: float = 0
    host: Path = Path("/")


@click.command()
@click.option("--report-data", metavar="HEX", help="1 to 64 bytes that the quote is to carry; zeros fill the rest.")
@click.option("--held-data", metavar="FILE", type=STREAM, help="Carry this file's SHA-256 in the first 32 bytes.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "in-proc", "out-of-proc"]),
    default="auto",
    help="Where QE and PCE are. auto: out-of-proc where SGX_AESM_ADDR is set, to whatever value.",
)
@click.option("--socket", metavar="PATH", type=FILE, default=AESM_SOCKET, show_default=True, help="Quote helper.")
@click.option(
    "--platform",
    type=click.Choice(["auto", "intel", "simulated"]),
    default="auto",
    show_default=True,
    help="In-proc: what makes the quote.",
)
@click.option(
    "--machine",
    "simulated_machine",
    metavar="FILE",
    type=FILE,
    help="Run a declared enclave on this machine.",
)
@click.option(
    "--enclave",
    metavar="FILE",
    type=FILE,
    help="Its declaration, or a signed enclave file. Default: a demo enclave.",
)
@click.option("--qe-report-nonce", metavar="HEX", help="16 bytes; have the QE report on the quote, and check that.")
@click.option("-o", "--output", metavar="FILE", type=STREAM, help="Write the quote there, binary.")
@click.option(
    "--wait",
    metavar="SECONDS",
    type=Number(0, 86400),
    default=0,
    help="Wait so long for a quote helper that is not there yet, or busy.  [default: not at all]",
)
@click.option("--host", metavar="FOLDER", type=FILE, default=Path("/"), hidden=True, help="Where /dev is.")
def quote(**options: Any) -> None:  # noqa: ANN401 - click fills QuoteOptions, which has the types
    """Get a quote on this machine, and say in one line which mode was chosen and why.

    Without -o the quote goes to standard output: binary, or base64 where that is a terminal.
    """
    given = QuoteOptions(**options)
    report_data, nonce = _report_data(given), _nonce(given.qe_report_nonce)
    source, enclave = _source(given)
    result = _quote(source, report_data, nonce, given.wait)
    if result.qe_report_info is not None:
        if enclave is None:
            raise PlatformUnavailable("there is no enclave in this process to check the QE's report")
        enclave.verify_report(result.qe_report_info.qe_report)
        note(f"the QE itself reported on this quote, for nonce {result.qe_report_info.nonce.hex()}")
    write_output(given.output, result.quote, "quote")


def quotes_of_this_process(machine: Path | None) -> Callable[[bytes], bytes]:
    """What makes quotes over 64 bytes of the enclave in which this process runs, or of one on a simulated machine."""
    given = QuoteOptions(simulated_machine=machine)
    source, _ = _source(given)
    return lambda report_data: source.quote(report_data).quote


def _source(given: QuoteOptions) -> tuple[QuoteSource, LocalEnclave | None]:
    """The source of quotes here, and the simulated enclave that it quotes; prints in one line why."""
    # Here, because they bring the simulator along, and --help does without.
    from confcom.platforms.quoting import process_mode
    from confcom.wiring import own_quotes

    decision = process_mode().decide(given.mode, os.environ, given.host)
    note(f"{decision}{_enclave_in_words(given)}")
    return own_quotes(
        decision,
        platform=given.platform,
        machine=given.simulated_machine,
        enclave=given.enclave,
        socket=given.socket,
        host=given.host,
    )


def _quote(source: QuoteSource, report_data: bytes, nonce: bytes | None, wait: float) -> QuoteResult:
    last = time.monotonic() + wait
    while True:
        try:
            return source.quote(report_data, nonce=nonce)
        except (PlatformUnavailable, PlatformBusy):
            if time.monotonic() >= last:
                raise
        time.sleep(LOOK_EVERY)


def _report_data(given: QuoteOptions) -> bytes:
    if (given.report_data is None) == (given.held_data is None):
        raise ConfigError(
            "a quote carries report data: give either --report-data or --held-data",
            advice="For a first try: --report-data 00. In production it is the verifier's nonce or the hash of a key.",
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


def _enclave_in_words(given: QuoteOptions) -> str:
    if given.simulated_machine is None:
        return ""
    return f"; SIMULATED machine {given.simulated_machine}, {given.enclave or 'a demo enclave'}"
