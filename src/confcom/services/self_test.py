"""Whether a helper does what it is for: asks it over its own socket, as a client does, and verifies what it gives.

A report must come from an enclave. On the simulated platform the machine has one. On real hardware confcom brings no
enclave of its own; there the QE reports on itself (`self_test_report`), as soon as one client has had a quote. Before
that the test shows that the QE lives and checks MACs: a report that no enclave made must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check
from confcom.appraisal.quote import QuoteVerifier
from confcom.errors import ConfcomError, PlatformError, PlatformUnavailable, ReportRejected, StaleCollateralError
from confcom.formats.sgx import Report, TargetInfo
from confcom.pki.roots import TrustRoots
from confcom.platforms.aesm_client import AesmPlatform, connect
from confcom.platforms.interface import InitializedQuote, ReportSource
from confcom.platforms.sgx_host import DEVICES_ADVICE
from confcom.services.recorded_clients import RECORDED, Material, replay
from confcom.services.self_test_report import SelfTestReport

QUESTIONS = {
    "devices": "the SGX devices can be opened",
    "attestation-key": "the attestation key is made and certified",
    "quote": "a quote for a report of the self-test's enclave",
    "verification": "the quote verifies against present collateral",
    "recorded-clients": "old clients' requests get answers that they can use",
}


_BODY_AT = 48
"""Where a quote of version 3 has the report's body."""


@dataclass(frozen=True, slots=True)
class ClientQuote:
    """A report that a client sent, and the quote that it got."""

    report: bytes
    quote: bytes


@dataclass(frozen=True, slots=True)
class SelfTestKit:
    """What a self-test has to work with.

    `collateral` gives what a quote is judged by at a time; None: nothing is configured. `devices` says why the SGX
    devices cannot be opened, each as a clause; None: the platform has none.
    """

    enclave: ReportSource | None
    collateral: Callable[[bytes, datetime], Collateral] | None
    roots: TrustRoots
    simulated: bool
    devices: Callable[[], tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What was asked and found, and the platform as our verifier sees it (None: there was no quote to verify)."""

    checks: tuple[Check, ...]
    verified: VerifiedQuote | None
    error: ConfcomError | None

    @property
    def ok(self) -> bool:
        """Whether everything was as it must be."""
        return all(check.ok for check in self.checks)

    def failures(self) -> str:
        """What was not, as clauses."""
        return "; ".join(f"{check.id}: {check.found}" for check in self.checks if not check.ok)


@dataclass(slots=True)
class _Findings:
    checks: list[Check] = field(default_factory=list)
    verified: VerifiedQuote | None = None
    error: ConfcomError | None = None

    def passed(self, identifier: str, found: str) -> None:
        self.checks.append(Check(identifier, ok=True, expected=QUESTIONS[identifier], found=found))

    def failed(self, identifier: str, found: str, advice: str = "") -> None:
        self.checks.append(Check(identifier, ok=False, expected=QUESTIONS[identifier], found=found, advice=advice))


class SelfTest:
    """Self-tests of the helper that serves, or is to serve, at a path. Block while they run.

    `now` is the clock of the verification.
    """

    def __init__(
        self, kit: SelfTestKit | None, socket_path: Path, *, now: Callable[[], datetime], timeout: float = 5.0
    ) -> None:
        self._kit = kit
        self._own_report = SelfTestReport(socket_path)
        self._now = now
        self._timeout = timeout
        self._verifier = None if kit is None else QuoteVerifier(kit.roots)

    def run(self, path: Path, *, last: ClientQuote | None = None, clients: bool = False) -> SelfTestResult:
        """Test the helper that listens at `path`; with `clients`, also replay what old clients send.

        `last` is the latest quote that its platform made for a client.
        """
        findings = _Findings()
        identifier = "devices"
        try:
            if self._kit is not None and self._kit.devices is not None:
                if lost := self.lost_devices():
                    raise PlatformUnavailable(lost, advice=DEVICES_ADVICE)
                findings.passed(identifier, "all can be opened")
            identifier = "attestation-key"
            helper = AesmPlatform(path, self._timeout, simulated=self._kit is not None and self._kit.simulated)
            initialized = helper.init_quote()
            size = helper.quote_size()
            findings.passed(identifier, f"quotes have {size} bytes")
            identifier = "quote"
            report, quote = self._quote(helper, initialized, last, findings)
            identifier = "verification"
            self._verify(quote if quote is not None or last is None else last.quote, findings)
            if clients:
                identifier = "recorded-clients"
                accepted = self._kit is None or quote is not None
                self._replay(path, Material(bytes(report), bytes(initialized.target_info), size, accepted), findings)
        except ConfcomError as error:
            findings.failed(identifier, error.message, error.advice())
            findings.error = error
        return SelfTestResult(tuple(findings.checks), findings.verified, findings.error)

    def lost_devices(self) -> str:
        """Why the SGX devices cannot be opened, as clauses; empty when they can."""
        return "; ".join(self._kit.devices()) if self._kit is not None and self._kit.devices is not None else ""

    def _quote(
        self, helper: AesmPlatform, initialized: InitializedQuote, last: ClientQuote | None, findings: _Findings
    ) -> tuple[Report, bytes | None]:
        if self._kit is None:
            return Report.parse(bytes(Report.size())), None
        if self._kit.enclave is not None:
            report = self._kit.enclave.create_report(initialized.target_info, bytes(64))
            quote = helper.quote(report).quote
            _check_quote(quote, report, f"{len(quote)} bytes", findings)
            return report, quote
        return self._quote_on_itself(helper, initialized, last, findings)

    def _quote_on_itself(
        self, helper: AesmPlatform, initialized: InitializedQuote, last: ClientQuote | None, findings: _Findings
    ) -> tuple[Report, bytes | None]:
        nobodys = _nobodys_report(initialized.target_info)
        refused = "a report that no enclave made is refused"
        try:
            helper.quote(nobodys)
        except ReportRejected:
            made = self._own_report.quote(helper, initialized.target_info, None if last is None else last.report)
        else:
            findings.failed("quote", "the QE signed a report that no enclave made")
            return nobodys, None
        if made is None:
            findings.passed("quote", f"{refused}; there is no other before the first quote for a client")
            return nobodys, None
        _check_quote(made.quote, made.report, f"{len(made.quote)} bytes, of {made.origin}; {refused}", findings)
        return made.report, made.quote

    def _verify(self, quote: bytes | None, findings: _Findings) -> None:
        if self._kit is None or self._verifier is None:
            return
        if self._kit.collateral is None:
            findings.passed("verification", "not done: no collateral is configured")
        elif quote is None:
            findings.passed("verification", "not done: no quote has been made for a client yet")
        else:
            now = self._now()
            verified = self._verifier.verify(quote, self._kit.collateral(quote, now), now=now, any_tcb=True)
            findings.verified = verified
            if verified.stale:
                raise StaleCollateralError(f"not valid at present: {', '.join(item.what for item in verified.stale)}")
            findings.passed("verification", f"TCB status {verified.tcb_status or 'not supported'}")

    def _replay(self, path: Path, material: Material, findings: _Findings) -> None:
        complaints = []
        for recorded in RECORDED:
            complaint = replay(recorded, material, lambda frame: _exchange(path, frame, self._timeout))
            if complaint:
                complaints.append(f"{recorded.client}: {complaint}")
        if complaints:
            findings.failed("recorded-clients", "; ".join(complaints))
        else:
            findings.passed("recorded-clients", f"{len(RECORDED)} requests")


def _check_quote(quote: bytes, report: Report, found: str, findings: _Findings) -> None:
    if quote[_BODY_AT : _BODY_AT + len(bytes(report.body))] == bytes(report.body):
        findings.passed("quote", found)
    else:
        findings.failed("quote", "the quote is about another report than the one that was sent")


def _nobodys_report(target_info: TargetInfo) -> Report:
    # Recognisable in a log of the QE, and with a MAC that is not right.
    return Report.parse(bytes(target_info)[:32].ljust(Report.size(), b"\0"))


def _exchange(path: Path, frame: bytes, timeout: float) -> bytes:
    answer = b""
    try:
        with connect(path, timeout) as client:
            client.sendall(frame)
            while piece := client.recv(1 << 16):
                answer += piece
    except OSError as error:
        raise PlatformError(f"the helper's socket broke off: {error}") from error
    return answer
