"""Recognises evidence as people hand it over: quote, Open Enclave report or evidence; binary, hex or base64."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Self
from uuid import UUID

import msgspec

from confcom.errors import FormatError
from confcom.formats.arguments import checked_bytes, decode_base64, without_bom
from confcom.formats.codec import U32, U64, Cursor, Record, raw
from confcom.formats.quote import MAX_QUOTE, Quote, is_epid

# Open Enclave's wrappings: report header, attestation (evidence) header, custom claims.
#
# Layouts: `openenclave/internal/report.h` (`oe_report_header_t`, 16 bytes), `openenclave/attestation/sgx/evidence.h`
# and `attestation_header` (32 bytes as compiled: 4 bytes of padding after the UUID); little-endian. In evidence of
# format SGX_ECDSA the quote is followed by the custom claims buffer; its SHA-256 stands in the first half of the report
# data.

REPORT_VERSION = 1
EVIDENCE_VERSION = 3
MAX_CLAIMS = 256
"""Custom claims in one buffer; a bound, real evidence carries a handful."""


class OeReportType(IntEnum):
    """`report_type` of the report header."""

    LOCAL = 1
    REMOTE = 2


FORMAT_SGX_ECDSA = UUID("a3a21e87-1b4d-4014-b70a-a125d2fbcd8c")
FORMAT_LEGACY_REPORT_REMOTE = UUID("c8303454-d923-4c2c-a691-df7def460a76")
FORMAT_RAW_SGX_QUOTE_ECDSA = UUID("1923d91e-12d2-4c72-b220-25cd8dace871")
FORMAT_LOCAL_ATTESTATION = UUID("09268c33-6e0b-45e5-8a27-15644d0ef89a")
FORMAT_NAMES: dict[UUID, str] = {
    FORMAT_SGX_ECDSA: "SGX_ECDSA",
    FORMAT_LEGACY_REPORT_REMOTE: "LEGACY_REPORT_REMOTE",
    FORMAT_RAW_SGX_QUOTE_ECDSA: "RAW_SGX_QUOTE_ECDSA",
    FORMAT_LOCAL_ATTESTATION: "LOCAL_ATTESTATION",
}


@dataclass(frozen=True, slots=True)
class OeReportHeader(Record):
    """`oe_report_header_t`, 16 bytes."""

    version: Annotated[int, U32]
    report_type: Annotated[int, U32]
    report_size: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class OeEvidenceHeader(Record):
    """`oe_attestation_header_t`, 32 bytes."""

    version: Annotated[int, U32]
    format_id: Annotated[bytes, raw(16)]
    padding: Annotated[bytes, raw(4)]
    data_size: Annotated[int, U64]

    @property
    def format(self) -> UUID:
        """The format of what follows."""
        return UUID(bytes=self.format_id)


class OeReport(msgspec.Struct, frozen=True):
    """An Open Enclave report: header and, for a remote report, a quote."""

    header: OeReportHeader
    report: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a report; its size field must account for every byte that follows."""
        cursor = Cursor(data, "OeReport")
        header = OeReportHeader.parse(cursor.take(OeReportHeader.size(), "header"))
        if header.version != REPORT_VERSION:
            raise cursor.error(f"expected {REPORT_VERSION}, found {header.version}", "header.version", 0)
        if header.report_type not in OeReportType.__members__.values():
            raise cursor.error(f"expected 1 or 2, found {header.report_type}", "header.report_type", 4)
        if header.report_size != cursor.remaining:
            raise cursor.error(f"says {header.report_size}, {cursor.remaining} bytes follow", "header.report_size", 8)
        return cls(header, cursor.rest())

    def __bytes__(self) -> bytes:
        return bytes(self.header) + self.report


class OeEvidence(msgspec.Struct, frozen=True):
    """Open Enclave evidence: header, then (for the SGX formats) a quote and the custom claims buffer."""

    header: OeEvidenceHeader
    data: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read evidence; its size field must account for every byte that follows."""
        cursor = Cursor(data, "OeEvidence")
        header = OeEvidenceHeader.parse(cursor.take(OeEvidenceHeader.size(), "header"))
        if header.version != EVIDENCE_VERSION:
            raise cursor.error(f"expected {EVIDENCE_VERSION}, found {header.version}", "header.version", 0)
        if header.format not in FORMAT_NAMES:
            raise cursor.error(f"unknown format {header.format}", "header.format_id", 4)
        if header.data_size != cursor.remaining:
            raise cursor.error(f"says {header.data_size}, {cursor.remaining} bytes follow", "header.data_size", 24)
        return cls(header, cursor.rest())

    def __bytes__(self) -> bytes:
        return bytes(self.header) + self.data

    def split(self) -> tuple[bytes, bytes | None]:
        """The quote and the custom claims buffer; None for the formats that have no custom claims."""
        if self.header.format == FORMAT_LOCAL_ATTESTATION:
            raise FormatError(
                "local attestation holds a report, not a quote", structure="OeEvidence", field="header.format_id"
            )
        if self.header.format != FORMAT_SGX_ECDSA:
            return self.data, None
        cursor = Cursor(self.data, "OeEvidence")
        quote = cursor.take(432, "quote")
        size = cursor.u32("quote.signature_data.size")
        quote += size.to_bytes(4, "little") + cursor.take(size, "quote.signature_data")
        return quote, cursor.rest()


class OeCustomClaims(msgspec.Struct, frozen=True):
    """The serialised custom claims: names and values, in order."""

    claims: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the buffer; an empty one holds no claims."""
        if not data:
            return cls(())
        cursor = Cursor(data, "OeCustomClaims")
        if (version := cursor.u64("version")) != 1:
            raise cursor.error(f"expected 1, found {version}", "version", 0)
        count = cursor.u64("count")
        if count > MAX_CLAIMS:
            raise cursor.error(f"{count} is over the limit {MAX_CLAIMS}", "count", 8)
        claims = tuple(_read_claim(cursor, index) for index in range(count))
        cursor.finish()
        return cls(claims)

    def __bytes__(self) -> bytes:
        if not self.claims:
            return b""
        parts = [(1).to_bytes(8, "little"), len(self.claims).to_bytes(8, "little")]
        for name, value in self.claims:
            text = name.encode() + b"\0"
            parts += [len(text).to_bytes(8, "little"), len(value).to_bytes(8, "little"), text, value]
        return b"".join(parts)


def _read_claim(cursor: Cursor, index: int) -> tuple[str, bytes]:
    field = f"claims[{index}]"
    name_size = cursor.u64(f"{field}.name_size")
    value_size = cursor.u64(f"{field}.value_size")
    start = cursor.offset
    text = cursor.take(name_size, f"{field}.name")
    if not text.endswith(b"\0") or b"\0" in text[:-1]:
        raise cursor.error("must end with its only NUL", f"{field}.name", start)
    try:
        name = text[:-1].decode()
    except UnicodeDecodeError as error:
        raise cursor.error("is not UTF-8", f"{field}.name", start) from error
    return name, cursor.take(value_size, f"{field}.value")


# Evidence of any form.

MAX_EVIDENCE = 4 * MAX_QUOTE
"""Bytes of a file of evidence, in any encoding."""

_MIN_TEXT = 32
"""Shorter inputs are nothing that could be decoded into evidence."""

_HEX = re.compile(rb"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")
_BASE64 = re.compile(rb"([A-Za-z0-9+/_-]+)={0,2}")


class EvidenceKind(StrEnum):
    """How the quote was wrapped."""

    QUOTE = "quote"
    OE_REPORT = "open-enclave-report"
    OE_EVIDENCE = "open-enclave-evidence"


class Encoding(StrEnum):
    """How the bytes were written."""

    BINARY = "binary"
    HEX = "hex"
    BASE64 = "base64"


class EvidenceFile(msgspec.Struct, frozen=True):
    """A quote with what came around it; `custom_claims` is the buffer that its report data must hash to, or None."""

    kind: EvidenceKind
    encoding: Encoding
    content: bytes
    quote: Quote
    custom_claims: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Recognise and read evidence; what has no mark is read as a quote. Else `FormatError`."""
        return cls.of_binary(*decode_text(checked_bytes(data, "evidence")))

    @classmethod
    def of_binary(cls, content: bytes, encoding: Encoding = Encoding.BINARY) -> Self:
        """Read evidence in its binary form."""
        if is_epid(content):
            return cls(EvidenceKind.QUOTE, encoding, content, Quote.parse(content))
        match int.from_bytes(content[:4], "little"):
            case version if version == REPORT_VERSION:
                return cls(EvidenceKind.OE_REPORT, encoding, content, _quote_of_report(content))
            case version if version == EVIDENCE_VERSION:
                quote, claims = OeEvidence.parse(content).split()
                return cls(EvidenceKind.OE_EVIDENCE, encoding, content, Quote.parse(quote), claims)
            case _:
                return cls(EvidenceKind.QUOTE, encoding, content, Quote.parse(content))


def decode_text(data: bytes) -> tuple[bytes, Encoding]:
    """The bytes that were written as hex or base64, or `data` itself when it is neither."""
    if not data:
        raise FormatError("the input is empty", structure="Evidence", field="", offset=0)
    if len(data) > MAX_EVIDENCE:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_EVIDENCE}", structure="Evidence", field="")
    data = without_bom(data)
    if b"\0" in data[:8]:  # as in the header of every quote, and in no text
        return data, Encoding.BINARY
    compact = b"".join(data.split())
    if len(compact) < _MIN_TEXT:
        return data, Encoding.BINARY
    if match := _HEX.fullmatch(compact):
        return bytes.fromhex(match.group(1).decode()), Encoding.HEX
    if match := _BASE64.fullmatch(compact):
        try:
            return decode_base64(match.group(1).decode()), Encoding.BASE64
        except ValueError as error:
            raise FormatError(f"looks like base64 but {error}", structure="Evidence", field="") from error
    return data, Encoding.BINARY


def _quote_of_report(content: bytes) -> Quote:
    report = OeReport.parse(content)
    if report.header.report_type != OeReportType.REMOTE:
        raise FormatError(
            "is a local report, which only an enclave on its own machine can check",
            structure="OeReport",
            field="header.report_type",
            offset=4,
            advice="Ask the enclave for a remote report (a quote).",
        )
    return Quote.parse(report.report)
