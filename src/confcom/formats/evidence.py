"""Recognises evidence as people hand it over: quote, Open Enclave report or evidence; binary, hex or base64."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self

import msgspec

from confcom.errors import FormatError
from confcom.formats.arguments import checked_bytes
from confcom.formats.open_enclave import EVIDENCE_VERSION, REPORT_VERSION, OeEvidence, OeReport, OeReportType
from confcom.formats.quote import MAX_QUOTE, Quote, is_epid
from confcom.formats.text import decode_base64, without_bom

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
