"""Quotes of an enclave from a platform: report for the QE, quote, and once more when the QE changed in between."""

from __future__ import annotations

import hashlib
import hmac
import threading

from confcom.errors import BindingError, FormatError, KeyNotInitialized, PlatformError, ReportRejected
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report, ReportBody, TargetInfo
from confcom.platforms.interface import (
    InitializedQuote,
    Platform,
    QuoteResult,
    ReportSource,
    sdk_simulation_refused,
)

REPORT_DATA_SIZE = 64
"""Bytes."""
NONCE_SIZE = 16
"""Bytes of the nonce that a QE report answers."""


class EnclaveQuoteSource:
    """A `QuoteSource` over any platform. The platform is used from one thread at a time.

    The QE's target info is remembered from quote to quote. An updated or restarted quote helper may have another QE
    or no attestation key yet: then the platform is initialized again and the enclave makes a new report, once.
    """

    def __init__(self, platform: Platform, enclave: ReportSource) -> None:
        self.platform = platform
        self._enclave = enclave
        self._initialized: InitializedQuote | None = None
        self._lock = threading.Lock()

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> QuoteResult:
        """A quote over 64 bytes; a nonce (16 bytes) asks for the QE's report on it, which is checked but for its MAC.

        The MAC of `qe_report_info.qe_report` can only be checked by the enclave.
        """
        check_sizes(report_data, nonce)
        with self._lock:
            try:
                return self._quote(report_data, nonce)
            except (KeyNotInitialized, ReportRejected):
                self._initialized = None
                return self._quote(report_data, nonce)

    def _quote(self, report_data: bytes, nonce: bytes | None) -> QuoteResult:
        if self._initialized is None:
            self._initialized = self.platform.init_quote()
        report = self._enclave.create_report(self._initialized.target_info, report_data)
        asked = None if nonce is None else _ask_for_qe_report(nonce, report)
        try:
            result = self.platform.quote(report, qe_report_info=asked)
        except ReportRejected as error:
            # An AESM service gives no reason.
            if report.is_of_sdk_simulation:
                raise sdk_simulation_refused() from error
            raise
        if Quote.parse(result.quote).body != report.body:
            raise PlatformError(
                "the platform answered with a quote of another report",
                advice="Do not use that quote. Restart the quote helper; if it happens again, distrust it.",
            )
        if asked is not None:
            check_qe_report(result, asked)
        return result


def check_sizes(report_data: bytes, nonce: bytes | None) -> None:
    """Refuse report data that is not 64 bytes and a nonce that is not 16, with a `FormatError`."""
    if len(report_data) != REPORT_DATA_SIZE:
        found = f"is {REPORT_DATA_SIZE} bytes, found {len(report_data)}"
        raise FormatError(found, structure="Report", field="report_data")
    if nonce is not None and len(nonce) != NONCE_SIZE:
        raise FormatError(f"is {NONCE_SIZE} bytes, found {len(nonce)}", structure="QeReportInfo", field="nonce")


def check_qe_report(result: QuoteResult, asked: QeReportInfo) -> None:
    """Check that the QE's report answers the nonce for this very quote: SHA-256(nonce ‖ quote) ‖ 32 zero bytes."""
    info = result.qe_report_info
    if info is None:
        raise PlatformError("the platform gave no QE report, although it was asked for one")
    expected = hashlib.sha256(asked.nonce + result.quote).digest() + bytes(32)
    found = info.qe_report.body.report_data
    same_request = info.nonce == asked.nonce and info.app_enclave_target_info == asked.app_enclave_target_info
    if not same_request or not hmac.compare_digest(expected, found):
        raise BindingError(
            "the QE's report is not about this quote and nonce",
            step="qe-report-info",
            expected=expected.hex(),
            found=found.hex(),
        )


def _ask_for_qe_report(nonce: bytes, report: Report) -> QeReportInfo:
    empty = Report(body=ReportBody.parse(bytes(ReportBody.size())), key_id=bytes(32), mac=bytes(16))
    return QeReportInfo(nonce=nonce, app_enclave_target_info=TargetInfo.of(report.body), qe_report=empty)
