"""The output of the demonstration, for readers who do not know what a quote is; on a terminal or in a pipe."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap

from rich.console import Console
from rich.text import Text

from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.result import AttestationResult
from confcom.cli.demo_refusals import MIN_SVN, PRODUCT, Trial, Witness
from confcom.cli.demo_stage import PeerOutcome, Stage
from confcom.cli.streams import printable
from confcom.formats.sgx import ReportBody

WIDTH = 100
"""Columns where no terminal says how many there are."""

_INTRODUCTION = """\
An enclave is a program with memory that not even the host can read or change. That is of little use until others can \
distinguish an enclave from a program that only claims to be one. This demonstration shows how: a quote is a \
statement about an enclave, signed so that it can be checked from anywhere.

Everything here is SIMULATED: the same bytes and protocols as on Intel SGX hardware, but no hardware protects them. \
No verifier accepts such quotes unless it is told to."""


class View:
    """Prints acts, steps and results, and remembers which expectations were not met."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
        plain = not (self._console.encoding or "").lower().startswith("utf")
        self._yes, self._no, self._arrow = ("ok", "NOT", "->") if plain else ("✓", "✗", "→")
        if plain and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        self._act = 0
        self._genuine: VerifiedQuote | None = None
        self.unmet: list[str] = []

    def introduce(self) -> None:
        """The introduction."""
        self._print("confcom demo: attestation from end to end", style="bold")
        for paragraph in _INTRODUCTION.split("\n\n"):
            self._console.print()
            self._print(paragraph)

    def act(self, title: str, explanation: str) -> None:
        """Begin an act."""
        self._act += 1
        self._heading(f"{self._act}. {title}")
        self._print(explanation, lead="   ")

    def step(self, what: str, *, met: bool = True) -> None:
        """Print a step; one that was not met makes the demonstration fail."""
        mark, style = (self._yes, "green") if met else (self._no, "bold red")
        self._print(what, lead=f"   {mark} ", lead_style=style)
        if not met:
            self.unmet.append(what)

    def peers(self, *outcomes: PeerOutcome) -> None:
        """What the sample's two processes printed."""
        for outcome in outcomes:
            for line in outcome.lines:
                self._print(line, lead="   | ", style="dim", lead_style="dim")

    def trial(self, trial: Trial, result: AttestationResult) -> None:
        """One piece of evidence: what it was, the verdict, and the verifier's reason."""
        met = trial.ended_as_expected(result)
        if met and result.error is None:
            self._genuine = result.verified
        self.step(f"{trial.title} ({trial.story})", met=met)
        lead = f"     {self._arrow} {result.verdict.value.upper()}: "
        for reason in _reasons(result):
            self._print(shorten(reason), lead=lead, lead_style="green" if result.error is None else "yellow")
        if not met:
            self._print(f"expected: {trial.verdict.value} {trial.code}", lead="     ", style="bold red")

    def summarize(self, seconds: float) -> None:
        """What a quote is, the chain of trust, what was proven, and what was not."""
        self._heading("What this was")
        for label, text in _summary(self._genuine, self._arrow):
            self._print(text, lead=f"   {label:<15}", lead_style="bold")
        self._console.print()
        if self.unmet:
            self._print(f"NOT as it should be: {'; '.join(self.unmet)}", style="bold red")
        else:
            self._print(f"Everything went as it should, in {seconds:.1f} s.", style="bold green")

    def suggest(self) -> None:
        """How to have something to try."""
        self._print("Run it again with --keep FOLDER to keep its quotes, and to verify them yourself.")

    def invite(self, stage: Stage, witness: Witness) -> None:
        """The command to try on a folder that was kept."""
        folder = shlex.quote(str(stage.folder))
        self._console.print()
        self._print(f"Kept in {folder}. Try this, then put one of the other .bin files in the place of quote.bin:")
        command = (
            f"confcom verify {folder}/quote.bin --collateral {folder}/collateral "
            f"--trust-root {folder}/collateral/root_ca.pem --mr-signer {witness.mr_signer.hex()} "
            f"--isv-prod-id {PRODUCT} --min-isv-svn {MIN_SVN} --report-data {witness.challenge.hex()}"
        )
        # In one line, so that it can be copied.
        self._console.print(Text(f"  {command}"), soft_wrap=True)

    def _heading(self, text: str) -> None:
        self._console.print()
        self._print(text, style="bold cyan")

    def _print(self, text: str, *, lead: str = "", style: str = "", lead_style: str = "") -> None:
        # Wrapped here, because rich fills lines with blanks, which a pipe does not need.
        lines = textwrap.wrap(printable(text), max(40, self._console.width - len(lead)), break_on_hyphens=False)
        for number, line in enumerate(lines or [""]):
            shown = lead if number == 0 else " " * len(lead)
            self._console.print(Text.assemble((shown, lead_style), (line, style)), soft_wrap=True)


def shorten(text: str) -> str:
    """The text with long hexadecimal numbers cut to what an eye compares."""
    return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{24,}\b", r"\1...", text)


def _reasons(result: AttestationResult) -> list[str]:
    if result.error is None:
        return ["every signature and every expectation holds"]
    if result.verified is None:
        return [result.error.message]
    return [f"{check.id}: found {check.found}, expected {check.expected}" for check in result.checks if not check.ok]


_A_QUOTE = """\
States that this program (MRENCLAVE) of this vendor (MRSIGNER) runs on a machine of this kind and patch level, not in \
debug mode, and that it chose these 64 bytes."""
_PROVEN = """\
Each peer knows which program it talks to, that this is the answer to its own question, and that no one in between, \
not even the host, can read or change their messages."""
_QUOTE_HELPER = """\
Out-of-proc, the node makes the quotes: applications carry no platform software, and verifiers see no difference. \
Between neighbours, the processor alone is enough."""
_NOT_PROVEN = "Anything about hardware: this platform is simulated."


def _summary(genuine: VerifiedQuote | None, arrow: str) -> tuple[tuple[str, str], ...]:
    return (
        ("A quote", _A_QUOTE),
        ("Chain of trust", "Could not be shown." if genuine is None else _chain(genuine, arrow)),
        ("Proven", _PROVEN),
        ("Quote helper", _QUOTE_HELPER),
        ("Not proven", _NOT_PROVEN),
    )


def _chain(genuine: VerifiedQuote, arrow: str) -> str:
    body = genuine.quote.body
    enclave = f" of enclave {body.mr_enclave.hex()[:16]}..." if isinstance(body, ReportBody) else ""
    links = (
        f"{genuine.root.name} (on hardware: Intel)",
        f"the machine's certificate (FMSPC {genuine.pck.fmspc.hex().upper()})",
        "its quoting enclave",
        "its attestation key",
        f"the quote{enclave}",
        "the public keys of both",
        "the encrypted channel",
    )
    return f" {arrow} ".join(links) + ". Each link is a signature or a hash that the verifier checked."
