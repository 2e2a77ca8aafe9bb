"""A report that a real QE accepts, so that its self-test goes all the way although this project ships no enclave.

Whoever asks for a quote may ask for the QE's own report along with it, and names the enclave that it is for. When that
enclave is the QE itself, the result is a report with a right MAC by the QE for the QE: it can be quoted. So the first
report of a client that the platform accepted is enough: asked once more with it, the QE gives one of its own, which is
kept and serves every later self-test; the client's quote of that second time is thrown away. A new QE (an update) takes
no report that was made for the old one, but the old one still serves then, and makes one for the new.

What is quoted then says MRENCLAVE of the QE, and its report data is SHA-256(nonce ‖ quote) of the request before.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

import structlog

from confcom.errors import ConfcomError, NativeError, ReportRejected
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.aesm_client import AesmPlatform
from confcom.services.kept_file import KeptFile

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
        self._file = KeptReport(socket.with_name(f".{socket.name}.self-test-report"))
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
                self._file.keep(found.report)
        return found

    def _of_old(self, helper: AesmPlatform, target: TargetInfo, *, serves: bool) -> SelfQuote | None:
        report = self._report or self._file.read()
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
    """The QE's report for `target`, made along with a quote of `report` that nobody gets."""
    nonce = secrets.token_bytes(_NONCE)
    result = helper.quote(report, qe_report_info=QeReportInfo(nonce, target, Report.parse(bytes(Report.size()))))
    made = None if result.qe_report_info is None else result.qe_report_info.qe_report
    if made is None or made.body.report_data[:32] != hashlib.sha256(nonce + result.quote).digest():
        raise NativeError("the QE's report is not about the quote that it was made with")
    return made


class KeptReport:
    """A report in a file of the helper's user alone. Never raises."""

    def __init__(self, path: Path) -> None:
        self._file = KeptFile(path, "aesm.self_test_report", limit=Report.size())

    def read(self) -> Report | None:
        """The report, if there is one that this user kept."""
        content = self._file.read()
        if content is None:
            return None
        if len(content) != Report.size():
            self._file.ignore(f"it has not the {Report.size()} bytes of a report")
            return None
        return Report.parse(content)

    def keep(self, report: Report) -> None:
        """Write it, unless it is there already."""
        self._file.keep(bytes(report))

    def drop(self, reason: str) -> None:
        """Remove it and say why."""
        self._file.drop(reason)
