"""The acts of `confcom demo`, in their order, and how they are printed for readers who do not know what a quote is.

At the end is the evidence that the last act shows to be refused: forged, of other enclaves, or for another challenge.
"""

from __future__ import annotations

import re
import secrets
import shlex
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from msgspec import structs
from rich.console import Console
from rich.text import Text

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import AllOf, IsvProdId, MinIsvSvn, MrSigner, Policy, ReportData, safe_defaults
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote
from confcom.appraisal.result import AttestationResult, judge
from confcom.cli.demo_stage import PeerOutcome, Stage, interruptible, open_stage
from confcom.cli.options import now, printable, write_file
from confcom.collateral.bundle import load_bundle, load_trust_roots
from confcom.errors import ExitCode, PlatformError
from confcom.formats.quote import Quote
from confcom.formats.sgx import ReportBody
from confcom.pki.chain import TrustRoots
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import create_machine_file, declare_enclave, export_simulated_collateral, open_machine


def play(keep: Path | None) -> int:
    """Play every act; 1 when something did not end as it should."""
    view = View()
    with interruptible(), open_stage(keep) as stage:
        started = time.monotonic()
        view.introduce()
        _build(stage, view)
        _attest_out_of_proc(stage, view)
        _attest_in_proc(stage, view)
        _attest_locally(stage, view)
        witness = Witness(stage.machine, stage.socket, stage.root)
        _refuse(stage, witness, view)
        view.summarize(time.monotonic() - started)
        if keep is None:
            view.suggest()
        else:
            view.invite(stage, witness)
    return ExitCode.UNEXPECTED if view.unmet else ExitCode.OK


def _build(stage: Stage, view: View) -> None:
    view.act(
        "A machine, its authority, and the quote helper",
        "On a real node the first two come from Intel; here they come from a file of random secrets.",
    )
    create_machine_file(stage.machine, secrets.token_bytes(32), now())
    view.step("a machine with secrets of its own, as a processor has them in its fuses")
    export_simulated_collateral(stage.machine, stage.collateral, now())
    view.step("collateral: what the authority says about such machines, signed, for every verifier")
    pid = stage.start_helper()
    view.step(f"the quote helper of this node, a process of its own (pid {pid}), listens on {stage.socket}")


def _attest_out_of_proc(stage: Stage, view: View) -> None:
    view.act(
        "Two enclaves attest each other, with quotes from the quote helper (out-of-proc)",
        "Two processes run examples/remote_attestation with SGX_AESM_ADDR set. Each makes a key, gets a quote over its "
        "own and the other's public key, and checks the other's quote.",
    )
    peers = stage.meet(out_of_proc=True)
    view.peers(*peers)
    view.step("both accepted each other, and each read the other's encrypted message", met=_met(*peers))
    view.step("each said that it works out-of-proc, and why", met=_said("quotes out-of-proc", *peers))
    served = stage.wait_for_quotes(len(peers))
    by_helper = sorted(served) == sorted(peer.pid for peer in peers)
    view.step("the helper's log shows one quote for each of the two processes", met=by_helper)


def _attest_in_proc(stage: Stage, view: View) -> None:
    view.act(
        "The same without the quote helper (in-proc)",
        "The same program without SGX_AESM_ADDR: each process brings its own quoting enclave.",
    )
    before = len(stage.quotes_served())
    peers = stage.meet()
    view.peers(*peers)
    view.step("both accepted each other, and each read the other's encrypted message", met=_met(*peers))
    view.step("each said that it works in-proc, and why", met=_said("quotes in-proc", *peers))
    view.step("the helper was not asked", met=len(stage.quotes_served()) == before)


def _attest_locally(stage: Stage, view: View) -> None:
    view.act(
        "Neighbours on one machine (local attestation)",
        "examples/local_attestation: enclaves of one machine need no quote, because the processor itself makes reports "
        "that only the neighbour can check.",
    )
    before = len(stage.quotes_served())
    neighbours = stage.attest_locally(declare_enclave("", SIGNER).mr_signer.hex())
    view.peers(neighbours)
    view.step("both accepted each other", met=neighbours.code == 0 and neighbours.out.count("accepted") == 2)
    view.step("no quote was made", met=len(stage.quotes_served()) == before)


def _refuse(stage: Stage, witness: Witness, view: View) -> None:
    view.act(
        "What a verifier refuses",
        "One genuine quote first, then six that must not pass. The reasons are the verifier's own.",
    )
    collateral = load_bundle(stage.collateral)
    for trial in witness.trials():
        write_file(stage.folder / trial.file, trial.evidence, "quote")
        view.trial(trial, trial.hold(collateral, now()))


def _met(*peers: PeerOutcome) -> bool:
    """Whether each ended well and printed what the other had to say."""
    greetings = {"A": "hello from B", "B": "hello from A"}
    return all(peer.code == 0 and f"received, encrypted: '{greetings[peer.name]}'" in peer.out for peer in peers)


def _said(words: str, *peers: PeerOutcome) -> bool:
    return all(words in peer.out for peer in peers)


# The output, on a terminal or in a pipe.

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
        self._print("confcom demo: attestation from end to end", style="bold")
        for paragraph in _INTRODUCTION.split("\n\n"):
            self._console.print()
            self._print(paragraph)

    def act(self, title: str, explanation: str) -> None:
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


# The evidence of the last act.

PRODUCT, MIN_SVN = 1, 2
SIGNER = "Contoso"
"""Of the sample's declarations; the demonstration expects it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One piece of evidence and the verdict that it must get."""

    title: str
    story: str
    file: str
    evidence: bytes
    roots: TrustRoots
    policy: Policy
    verdict: Verdict
    code: str
    """Of the error; empty when it is to be accepted."""

    def hold(self, collateral: Collateral, now: datetime) -> AttestationResult:
        """Judge it."""
        return judge(self.evidence, collateral, verifier=QuoteVerifier(self.roots), policy=self.policy, now=now)

    def ended_as_expected(self, result: AttestationResult) -> bool:
        """Whether verdict and error are the expected ones."""
        return result.verdict is self.verdict and (result.error.code if result.error else "") == self.code


class Witness:
    """Makes the evidence: enclaves of the simulated machine, quoted by the running quote helper."""

    def __init__(self, machine: Path, socket: Path, root: Path) -> None:
        self._machine = open_machine(machine)
        self._platform = AesmPlatform(socket, simulated=True)
        self.roots = load_trust_roots(root)
        self.challenge = _report_data()

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER that the policies ask for."""
        return declare_enclave("", SIGNER).mr_signer

    def policy(self, report_data: bytes) -> Policy:
        """What the sample's peers ask of each other."""
        return AllOf(
            safe_defaults(accept_simulated=True),
            MrSigner((self.mr_signer,)),
            IsvProdId(PRODUCT),
            MinIsvSvn(MIN_SVN),
            ReportData(report_data),
        )

    def quote(self, report_data: bytes, *, signer: str = SIGNER, debug: bool = False) -> bytes:
        """A genuine quote of an enclave of that signer."""
        declaration = declare_enclave("a build of the sample", signer, isv_prod_id=PRODUCT, isv_svn=2, debug=debug)
        return EnclaveQuoteSource(self._platform, self._machine.launch(declaration)).quote(report_data).quote

    def trials(self) -> tuple[Trial, ...]:
        """All trials; the genuine quote first, so that the refusals are meaningful."""
        challenge, earlier = self.challenge, _report_data()
        genuine = self.quote(challenge)
        policy, roots = self.policy(challenge), self.roots

        def trial(title: str, story: str, file: str, evidence: bytes, verdict: Verdict, code: str) -> Trial:
            return Trial(title, story, file, evidence, roots, policy, verdict, code)

        return (
            trial("A genuine quote", "nothing was changed", "quote.bin", genuine, Verdict.ACCEPTED, ""),
            trial(
                "A forged quote", "its security version was raised from 2 to 9", "forged-version.bin",
                with_other_version(genuine), Verdict.INVALID, "signature-invalid",
            ),
            trial(
                "A quote signed by another key", "the forger replaced signature and key by his own",
                "forged-key.bin", signed_by_another_key(genuine), Verdict.INVALID, "binding-mismatch",
            ),
            trial(
                "A debug enclave", "genuine, but the host can read its memory", "debug.bin",
                self.quote(challenge, debug=True), Verdict.REFUSED, "policy-refused",
            ),
            trial(
                "A wrong signer", "genuine, but Mallory built this enclave", "other-signer.bin",
                self.quote(challenge, signer="Mallory"), Verdict.REFUSED, "policy-refused",
            ),
            trial(
                "A recorded quote", "genuine, but it answers an earlier challenge", "recorded.bin",
                self.quote(earlier), Verdict.REFUSED, "policy-refused",
            ),
            replace(
                trial(
                    "The genuine quote, trusting Intel alone", "the default of every verifier",
                    "quote.bin", genuine, Verdict.INVALID, "root-untrusted",
                ),
                roots=TrustRoots.intel(),
            ),
        )  # fmt: skip


def _report_data() -> bytes:
    return sha256(secrets.token_bytes(32)).digest() + bytes(32)


def with_other_version(evidence: bytes) -> bytes:
    """The quote with another ISVSVN in its signed part."""
    quote = Quote.parse(evidence)
    return bytes(structs.replace(quote, body=replace(_enclave(quote), isv_svn=9)))


def signed_by_another_key(evidence: bytes) -> bytes:
    """The quote with a forger's key in place of the attestation key, and a signature that matches it."""
    quote = Quote.parse(evidence)
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    r, s = utils.decode_dss_signature(key.sign(quote.signed_bytes, ec.ECDSA(SHA256())))
    forged = structs.replace(
        quote.signature,
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        attestation_key=numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"),
    )
    return bytes(structs.replace(quote, signature=forged))


def _enclave(quote: Quote) -> ReportBody:
    if not isinstance(quote.body, ReportBody):  # pragma: no cover - the simulated machine has no TDs
        raise PlatformError("the simulated machine made a quote of a TD")
    return quote.body
