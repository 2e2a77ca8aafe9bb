"""A platform for tests of what stands on platforms: makes quotes with recognisable bytes and can be told to fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from confcom.errors import KeyNotInitialized
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.interface import InitializedQuote, QuoteResult

TARGET_INFO = TargetInfo.parse(bytes(range(256)) * 2)
PUB_KEY_ID = bytes(range(100, 132))
CERTIFICATION_SIZE = 3648
QUOTE_SIZE = 436 + 576 + 40 + CERTIFICATION_SIZE


def quote_over(report: Report) -> bytes:
    """A quote of version 3 in shape: report body and lengths are right, signatures are not there."""
    header = b"\x03\x00\x02\x00" + bytes(44)
    signature = b"\x5a" * (QUOTE_SIZE - 436)
    return header + bytes(report.body) + len(signature).to_bytes(4, "little") + signature


@dataclass
class RecordingPlatform:
    """Remembers what it was asked, in order."""

    ids: tuple[AttestationKeyId, ...] = (ECDSA_P256_KEY_ID,)
    initialized: bool = False
    can_report: bool = True
    before: Callable[[str], None] = lambda _: None
    asked: list[str] = field(default_factory=list)
    name: str = "recording"
    simulated: bool = True

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        self._ask("key_ids")
        return self.ids

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        self._ask("init_quote")
        self.initialized = True
        return InitializedQuote(TARGET_INFO, PUB_KEY_ID)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        self._ask("quote_size")
        if not self.initialized:
            raise KeyNotInitialized("no key yet")
        return QUOTE_SIZE

    def quote(
        self, report: Report, key_id: AttestationKeyId | None = None, qe_report_info: QeReportInfo | None = None
    ) -> QuoteResult:
        self._ask("quote")
        if not self.initialized:
            raise KeyNotInitialized("no key yet")
        quote = quote_over(report)
        if qe_report_info is None or not self.can_report:
            return QuoteResult(quote)
        return QuoteResult(quote, qe_report_info_for(quote, qe_report_info))

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        self.before(what)


def qe_report_info_for(quote: bytes, info: QeReportInfo) -> QeReportInfo:
    """The QE report that belongs to a quote without its padding: SHA-256(nonce ‖ quote) ‖ zeros at 320 of the body."""
    report = bytearray(432)
    report[320:352] = hashlib.sha256(info.nonce + quote).digest()
    return QeReportInfo.parse(bytes(info)[:528] + bytes(report))
