"""The self-test of a helper: asks for a quote over its own socket, as a client does, and verifies it.

A report must come from an enclave. On the simulated platform the machine has one. On real hardware confcom brings no
enclave of its own; there the QE reports on itself (`self_test_report`), as soon as one client has had a quote. Before
that the test shows that the QE lives and checks MACs: a report that no enclave made must be refused.

A new helper also answers what clients of the AESM protocol put on the wire before it takes over, so that no update can
change what an old client gets. It was recorded from Intel's libraries (`libsgx_dcap_ql`, `libsgx_quote_ex`), Open
Enclave 0.19, Gramine and Fortanix' aesm-client 0.6. Key id and report are filled in; all else is as it was sent, down
to Intel's uninitialised buffer size and Fortanix' timeouts in microseconds.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Check
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote
from confcom.errors import (
    ConfcomError,
    NativeError,
    PlatformError,
    PlatformUnavailable,
    ProtocolError,
    ReportRejected,
    StaleCollateralError,
)
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.pki.chain import TrustRoots
from confcom.platforms.aesm_client import AesmPlatform, connect
from confcom.platforms.interface import DEVICES_ADVICE, InitializedQuote, ReportSource
from confcom.protocols import aesm as m
from confcom.protocols.aesm import NEED_DATA, IncompleteRequest, Response, ServerConnection, exchange_of, parse_response
from confcom.protocols.aesm_status import AesmStatus

NONCE: Final = bytes(range(16))
LENGTH_AT: Final = 432
"""Where a quote says how long its signature data is."""

_KEY = bytes(ECDSA_P256_KEY_ID)


@dataclass(frozen=True, slots=True)
class Material:
    """What a replay is filled with: a report for the present QE or anything of its size, and the quote's size."""

    report: bytes
    target_info: bytes
    quote_size: int
    accepted: bool
    """Whether the platform is to accept the report."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One frame of one client. `complaint` says what of an answer the client could not use; empty: nothing."""

    client: str
    frame: Callable[[Material], bytes]
    complaint: Callable[[Response, Material], str]


def replay(recorded: RecordedRequest, material: Material, exchange: Callable[[bytes], bytes]) -> str:
    """Send the frame; says what is wrong with the answer, empty when the client can use it."""
    frame = recorded.frame(material)
    server = ServerConnection()
    server.receive_data(frame)
    request = server.next_event()
    if request is NEED_DATA or isinstance(request, IncompleteRequest):  # pragma: no cover - a mistake in this module
        return "the recorded frame is not a whole request"
    answer = exchange(frame)
    if len(answer) < 4 or int.from_bytes(answer[:4], "little") != len(answer) - 4:
        return f"the answer is not one frame ({len(answer)} bytes)"
    try:
        row = exchange_of(request)  # type: ignore[arg-type]
        response = parse_response(answer[4:], row)
    except ProtocolError as error:
        return error.message
    complaint = recorded.complaint(response, material)
    return f"{row.name}: {complaint}" if complaint else ""


# What clients need.


def _one_key(response: Response, _: Material) -> str:
    good = isinstance(response, m.GetSupportedAttKeyIdNumResponse) and response.att_key_id_num == 1
    return _status(response) or ("" if good else "one key id is expected")


def _key_list(response: Response, _: Material) -> str:
    # Open Enclave looks for algorithm 2 in it; Fortanix wants exactly 256 bytes per id.
    good = isinstance(response, m.GetSupportedAttKeyIdsResponse) and response.att_key_ids == _KEY
    return _status(response) or ("" if good else "the list is not the id of Intel's ECDSA QE, 256 bytes")


def _selected(response: Response, _: Material) -> str:
    good = isinstance(response, m.SelectAttKeyIdResponse) and response.selected_att_key_id == _KEY
    return _status(response) or ("" if good else "the selected id is not the caller's own")


def _step_1(response: Response, _: Material) -> str:
    good = (
        isinstance(response, m.InitQuoteExResponse)
        and response.target_info == bytes(512)
        and response.pub_key_id_size == 32
        and response.pub_key_id is None  # Intel's client would write it to a null pointer
    )
    return _status(response) or ("" if good else "step 1 needs 512 zeros, size 32 and no key")


def _step_2(response: Response, material: Material) -> str:
    good = (
        isinstance(response, m.InitQuoteExResponse)
        and response.target_info == material.target_info
        and len(response.pub_key_id or b"") == response.pub_key_id_size == 32
    )
    return _status(response) or ("" if good else "step 2 needs the QE's target info and a key of 32 bytes")


def _size(response: Response, material: Material) -> str:
    good = isinstance(response, m.GetQuoteSizeExResponse) and response.quote_size == material.quote_size
    return _status(response) or ("" if good else f"the size is not that of the quote, {material.quote_size}")


def _exact_quote(response: Response, material: Material) -> str:
    return _quote(response, material, material.quote_size)


def _padded_quote(response: Response, material: Material) -> str:
    return _quote(response, material, 8192)


def _quote_with_report(response: Response, material: Material) -> str:
    info = response.qe_report_info if isinstance(response, m.GetQuoteExResponse) else None
    # Fortanix cuts at 528 without looking, on errors too.
    if info is None or len(info) != 960 or info[:528] != NONCE + material.target_info:
        return "the QE report info did not come back"
    return _quote(response, material, material.quote_size)


def _quote(response: Response, material: Material, length: int) -> str:
    if not material.accepted:
        refused = response.status is AesmStatus.INVALID_REPORT
        return "" if refused else f"a report with a wrong MAC is answered with {response.status.name}"
    quote = (response.quote if isinstance(response, m.GetQuoteExResponse) else None) or b""
    whole = len(quote) == length and LENGTH_AT + 4 + int.from_bytes(quote[432:436], "little") == material.quote_size
    return _status(response) or ("" if whole else f"the quote has {len(quote)} bytes, expected {length}")


def _no_epid(response: Response, _: Material) -> str:
    return "" if response.status is AesmStatus.SERVICE_UNAVAILABLE else f"status {response.status.name}"


def _status(response: Response) -> str:
    return "" if response.status is AesmStatus.SUCCESS else f"status {response.status.name}"


# What clients send.


def _frame(number: int, *fields: bytes) -> Callable[[Material], bytes]:
    body = b"".join(fields)
    return lambda _: _framed(number, body)


def _framed(number: int, body: bytes) -> bytes:
    message = _varint(number << 3 | 2) + _varint(len(body)) + body
    return len(message).to_bytes(4, "little") + message


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _quote_frame(*tail: bytes, size: int | None = None, qe_report: bool = False) -> Callable[[Material], bytes]:
    def fill(material: Material) -> bytes:
        info = _bytes(3, NONCE + material.target_info + bytes(432)) if qe_report else b""
        length = _number(4, material.quote_size if size is None else size)
        return _framed(17, b"".join((_bytes(1, material.report), _bytes(2, _KEY), info, length, *tail)))

    return fill


_ID = _bytes(1, _KEY)
MILLISECONDS = _number(9, 15000)  # Intel's timeout
MICROSECONDS = _number(9, 30_000_000)  # Fortanix'
UNINITIALISED = _number(4, 140104990781472)  # what was in libsgx_dcap_ql's memory
_INTEL, _OE, _GRAMINE, _FORTANIX = "Intel libsgx_dcap_ql", "Open Enclave", "Gramine", "Fortanix aesm-client"

RECORDED: tuple[RecordedRequest, ...] = (
    RecordedRequest(_INTEL, _frame(15, _ID, _number(3, 0), UNINITIALISED, MILLISECONDS), _step_1),
    RecordedRequest(_INTEL, _frame(15, _ID, _number(3, 1), _number(4, 32), MILLISECONDS), _step_2),
    RecordedRequest(_INTEL, _frame(16, _ID, MILLISECONDS), _size),
    RecordedRequest(_INTEL, _quote_frame(MILLISECONDS), _exact_quote),
    RecordedRequest("Intel ukey_exchange", _quote_frame(MILLISECONDS, qe_report=True), _quote_with_report),
    RecordedRequest(
        "Intel libsgx_quote_ex", _frame(19, _bytes(1, bytes(4) + b"\1\0\0\0" + _KEY), _number(2, 15000)), _selected
    ),
    RecordedRequest("an EPID client", _frame(1, MILLISECONDS), _no_epid),
    RecordedRequest(_OE, _frame(21, MILLISECONDS), _one_key),
    RecordedRequest(_OE, _frame(22, _number(1, 256), MILLISECONDS), _key_list),
    RecordedRequest(_OE, _frame(15, _ID, _number(3, 0), MILLISECONDS), _step_1),
    RecordedRequest(_GRAMINE, _frame(15, _ID, _number(3, 1), _number(4, 32)), _step_2),
    RecordedRequest(_GRAMINE, _quote_frame(size=8192), _padded_quote),
    RecordedRequest(_FORTANIX, _frame(21, MICROSECONDS), _one_key),
    RecordedRequest(_FORTANIX, _frame(22, _number(1, 256), MICROSECONDS), _key_list),
    RecordedRequest(_FORTANIX, _frame(15, _ID, _number(3, 0), MICROSECONDS), _step_1),
    RecordedRequest(_FORTANIX, _frame(15, _ID, _number(3, 1), _number(4, 32)), _step_2),
    RecordedRequest(_FORTANIX, _frame(16, _ID, MICROSECONDS), _size),
    RecordedRequest(_FORTANIX, _quote_frame(MICROSECONDS, qe_report=True), _quote_with_report),
)


_MODE = 0o600


class KeptFile:
    """A small file that a daemon keeps for its successor; `event` names it in the log. Nothing here raises.

    A file that another user can write, or that is longer than `limit`, is ignored: another user may have put it there.
    """

    def __init__(self, path: Path, event: str, *, limit: int) -> None:
        self._path = path
        self._event = event
        self._limit = limit

    def read(self) -> bytes | None:
        """The content, `limit` bytes at most."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.ignore(error.strerror or str(error))
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                self.ignore("it is not a file of this user alone")
                return None
            content = os.read(descriptor, self._limit + 1)
        finally:
            os.close(descriptor)
        if len(content) > self._limit:
            self.ignore(f"it has more than {self._limit} bytes")
            return None
        return content

    def keep(self, content: bytes) -> None:
        """Write it in one step, unless it is there already."""
        if self.read() == content:
            return
        # With the process's number: a successor may write at the same time.
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            new.rename(self._path)
        except OSError as error:  # the daemon goes on from memory, and its successor begins with nothing
            structlog.get_logger().warning(self._event, outcome="not kept", reason=error.strerror)
        else:
            structlog.get_logger().info(self._event, outcome="kept", file=str(self._path))

    def drop(self, reason: str) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        structlog.get_logger().warning(self._event, outcome="dropped", reason=reason)

    def ignore(self, reason: str) -> None:
        """Say why its content is not used."""
        structlog.get_logger().warning(self._event, outcome="ignored", reason=reason, file=str(self._path))


# A report that a real QE accepts, although this project ships no enclave.
#
# A request for a quote may ask for the QE's own report too, and names the enclave that the report is for. When that
# enclave is the QE itself, the result is a report by the QE for the QE with a right MAC: it can be quoted. So the first
# report of a client that the platform accepted is enough: sent once more, it makes the QE report on itself. That report
# is kept for every later self-test; the quote that came with it is dropped. A new QE (an update) rejects reports that
# were made for the old one, but the old one still serves then, and makes a report for the new one.
#
# Such a quote has the QE's MRENCLAVE, and its report data is SHA-256(nonce ‖ quote) of the request before.


_NONCE = 16


@dataclass(frozen=True, slots=True)
class SelfQuote:
    """A report that the QE accepted, the quote that it made of it, and where the report came from."""

    report: Report
    quote: bytes
    origin: str


class SelfTestReport:
    """The report for the self-tests of the helper that serves, or is to serve, at `socket`."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        place = socket.with_name(f".{socket.name}.self-test-report")
        self._file = KeptFile(place, "aesm.self_test_report", limit=Report.size())
        self._report: Report | None = None

    def quote(self, helper: AesmPlatform, target: TargetInfo, client_report: bytes | None) -> SelfQuote | None:
        """Have a helper quote a report of the QE that `target` names; None when there is none to begin with.

        `client_report` is the latest of a client that the helper's platform accepted. Failures of the QE are raised.
        """
        serves = helper.socket_path == self._socket
        found = self._of_old(helper, target, serves=serves) or _of_client(helper, target, client_report)
        if found is not None:
            self._report = found.report
            # Until it has taken over, the file is its predecessor's.
            if serves:
                self._file.keep(bytes(found.report))
        return found

    def _kept(self) -> Report | None:
        content = self._file.read()
        if content is not None and len(content) != Report.size():
            self._file.ignore(f"it has not the {Report.size()} bytes of a report")
            return None
        return None if content is None else Report.parse(content)

    def _of_old(self, helper: AesmPlatform, target: TargetInfo, *, serves: bool) -> SelfQuote | None:
        report = self._report or self._kept()
        if report is None:
            return None
        try:
            return SelfQuote(report, helper.quote(report).quote, "the QE's report on itself")
        except ReportRejected:
            self._report = None
        if serves:
            self._file.drop("this QE does not take it: the QE or the TCB of the machine is another one than before")
            return None
        made = _of_predecessor(AesmPlatform(self._socket, helper.timeout, simulated=helper.simulated), report, target)
        return None if made is None else SelfQuote(made, helper.quote(made).quote, "a report by the QE before it")


def _of_client(helper: AesmPlatform, target: TargetInfo, client_report: bytes | None) -> SelfQuote | None:
    if client_report is None:
        return None
    try:
        report = _report_by_qe(helper, Report.parse(client_report), target)
    except ReportRejected:  # another TCB since then: the next client has a new one
        return None
    return SelfQuote(report, helper.quote(report).quote, "the QE's first report on itself")


def _of_predecessor(predecessor: AesmPlatform, report: Report, target: TargetInfo) -> Report | None:
    try:
        return _report_by_qe(predecessor, report, target)
    except ConfcomError as error:  # its own trouble, and no fault of the new one
        structlog.get_logger().warning("aesm.self_test_report", outcome="not made", reason=error.message)
        return None


def _report_by_qe(helper: AesmPlatform, report: Report, target: TargetInfo) -> Report:
    """The QE's report for `target`, made along with a quote of `report`, which is dropped."""
    nonce = secrets.token_bytes(_NONCE)
    result = helper.quote(report, qe_report_info=QeReportInfo(nonce, target, Report.parse(bytes(Report.size()))))
    made = None if result.qe_report_info is None else result.qe_report_info.qe_report
    if made is None or made.body.report_data[:32] != hashlib.sha256(nonce + result.quote).digest():
        raise NativeError("the QE's report is not about the quote that it was made with")
    return made


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
        """Why the SGX devices cannot be opened, as clauses; empty if they can."""
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
        forged = _forged_report(initialized.target_info)
        refused = "a report that no enclave made is refused"
        try:
            helper.quote(forged)
        except ReportRejected:
            made = self._own_report.quote(helper, initialized.target_info, None if last is None else last.report)
        else:
            findings.failed("quote", "the QE signed a report that no enclave made")
            return forged, None
        if made is None:
            findings.passed("quote", f"{refused}; there is no other before the first quote for a client")
            return forged, None
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


def _forged_report(target_info: TargetInfo) -> Report:
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
