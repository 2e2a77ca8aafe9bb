"""Local attestation: two enclaves of one machine prove themselves to each other with reports, without any quote.

The verifier gives its target info, the attester reports to it (EREPORT), and the verifier checks the MAC with its own
report key (EGETKEY). The processor vouches, so there is neither certificate nor collateral; nobody else can check.
"""

from __future__ import annotations

import hmac
from typing import Protocol

from confcom.errors import BindingError
from confcom.formats.sgx import Report, ReportBody, TargetInfo
from confcom.platforms.interface import ReportSource


class LocalEnclave(ReportSource, Protocol):
    """An enclave that can also check what its neighbours report to it."""

    @property
    def target_info(self) -> TargetInfo:
        """Whom neighbours must name in their reports to this enclave."""

    def verify_report(self, report: Report) -> None:
        """Check the MAC with this enclave's report key; `ReportRejected` when it is wrong."""


def verify_local_report(enclave: LocalEnclave, report: Report | bytes, report_data: bytes) -> ReportBody:
    """Who made a report for `enclave`, once it is authentic and over exactly these 64 bytes.

    Raises `FormatError`, `ReportRejected` (another machine, another target, or altered) or `BindingError`. Authentic
    is not acceptable: MRSIGNER, product id, SVN and the debug flag of the result are the caller's to judge.
    """
    parsed = report if isinstance(report, Report) else Report.parse(report)
    enclave.verify_report(parsed)
    if not hmac.compare_digest(parsed.body.report_data, report_data):
        raise BindingError(
            "the report is about other data",
            step="report-data",
            expected=report_data.hex(),
            found=parsed.body.report_data.hex(),
        )
    return parsed.body
