"""Open Enclave's wrappings against the documented bytes (attestation-service.md §4.2)."""

from __future__ import annotations

from uuid import UUID

import pytest

from confcom.errors import FormatError
from confcom.formats.evidence import (
    FORMAT_LEGACY_REPORT_REMOTE,
    FORMAT_LOCAL_ATTESTATION,
    FORMAT_RAW_SGX_QUOTE_ECDSA,
    FORMAT_SGX_ECDSA,
    MAX_CLAIMS,
    OeCustomClaims,
    OeEvidence,
    OeEvidenceHeader,
    OeReport,
    OeReportHeader,
)
from made_quotes import poke, quote_v3, u32
from record_layout import check_complete, check_field

QUOTE = quote_v3()
SGX_ECDSA = bytes.fromhex("a3a21e87 1b4d 4014 b70a a125d2fbcd8c")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def report(content: bytes, kind: int = 2) -> bytes:
    return u32(1) + u32(kind) + u64(len(content)) + content


def evidence(content: bytes, format_id: bytes = SGX_ECDSA) -> bytes:
    return u32(3) + format_id + bytes(4) + u64(len(content)) + content


def claims(*pairs: tuple[bytes, bytes]) -> bytes:
    entries = [u64(len(name)) + u64(len(value)) + name + value for name, value in pairs]
    return u64(1) + u64(len(pairs)) + b"".join(entries)


def test_the_headers_have_the_documented_layout() -> None:
    for kind, size, rows in (
        (OeReportHeader, 16, [("version", 0, 4), ("report_type", 4, 4), ("report_size", 8, 8)]),
        (OeEvidenceHeader, 32, [("version", 0, 4), ("format_id", 4, 16), ("padding", 20, 4), ("data_size", 24, 8)]),
    ):
        check_complete(kind, rows)
        assert kind.size() == size
        for row in rows:
            check_field(kind, *row)


@pytest.mark.parametrize("kind", [1, 2])
def test_a_report_is_a_header_and_what_it_wraps(kind: int) -> None:
    data = report(b"content", kind)
    parsed = OeReport.parse(data)
    assert (parsed.header.report_type, parsed.report) == (kind, b"content")
    assert bytes(parsed) == data


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"", "header", 0),
        (report(b"")[:15], "header", 0),
        (poke(report(b"x"), 0, u32(2)), "header.version", 0),
        (report(b"x", 0), "header.report_type", 4),
        (report(b"x", 3), "header.report_type", 4),
        (report(b"xy")[:-1], "header.report_size", 8),
        (report(b"xy") + b"z", "header.report_size", 8),
        (poke(report(b"xy"), 8, b"\xff" * 8), "header.report_size", 8),
    ],
)
def test_malformed_reports_are_refused_where_they_go_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        OeReport.parse(data)
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("OeReport", field, offset)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a3a21e87-1b4d-4014-b70a-a125d2fbcd8c", FORMAT_SGX_ECDSA),
        ("c8303454-d923-4c2c-a691-df7def460a76", FORMAT_LEGACY_REPORT_REMOTE),
        ("1923d91e-12d2-4c72-b220-25cd8dace871", FORMAT_RAW_SGX_QUOTE_ECDSA),
        ("09268c33-6e0b-45e5-8a27-15644d0ef89a", FORMAT_LOCAL_ATTESTATION),
    ],
)
def test_formats_are_known_by_their_uuid(text: str, value: UUID) -> None:
    data = evidence(b"content", UUID(text).bytes)
    parsed = OeEvidence.parse(data)
    assert (parsed.header.format, parsed.data) == (value, b"content")
    assert bytes(parsed) == data


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"", "header", 0),
        (evidence(b"")[:31], "header", 0),
        (poke(evidence(b"x"), 0, u32(1)), "header.version", 0),
        (evidence(b"x", bytes(16)), "header.format_id", 4),
        (evidence(b"x", SGX_ECDSA[::-1]), "header.format_id", 4),
        (evidence(b"xy")[:-1], "header.data_size", 24),
        (evidence(b"xy") + b"z", "header.data_size", 24),
        (poke(evidence(b"xy"), 24, b"\xff" * 8), "header.data_size", 24),
    ],
)
def test_malformed_evidence_is_refused_where_it_goes_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        OeEvidence.parse(data)
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("OeEvidence", field, offset)


@pytest.mark.parametrize("buffer", [b"", b"any bytes", claims((b"name\0", b"value"))])
def test_custom_claims_follow_the_quote(buffer: bytes) -> None:
    assert OeEvidence.parse(evidence(QUOTE + buffer)).split() == (QUOTE, buffer)


@pytest.mark.parametrize("value", [FORMAT_LEGACY_REPORT_REMOTE, FORMAT_RAW_SGX_QUOTE_ECDSA])
def test_the_other_remote_formats_have_no_custom_claims(value: UUID) -> None:
    assert OeEvidence.parse(evidence(QUOTE, value.bytes)).split() == (QUOTE, None)


def test_local_attestation_has_no_quote() -> None:
    with pytest.raises(FormatError, match="not a quote"):
        OeEvidence.parse(evidence(bytes(432), FORMAT_LOCAL_ATTESTATION.bytes)).split()


@pytest.mark.parametrize(
    ("content", "field", "offset"),
    [
        (b"", "quote", 0),
        (QUOTE[:431], "quote", 0),
        (QUOTE[:435], "quote.signature_data.size", 432),
        (QUOTE[:-1], "quote.signature_data", 436),
        (poke(QUOTE, 432, b"\xff" * 4), "quote.signature_data", 436),
    ],
)
def test_a_quote_that_ends_too_early_leaves_no_claims(content: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        OeEvidence.parse(evidence(content)).split()
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("OeEvidence", field, offset)


def test_claims_are_names_and_values_in_order() -> None:
    data = claims((b"Event\0", b"Attestation sample\0"), ("Schlüssel\0".encode(), b""), (b"Event\0", b"again"))
    parsed = OeCustomClaims.parse(data)
    assert parsed.claims == (("Event", b"Attestation sample\0"), ("Schlüssel", b""), ("Event", b"again"))
    assert bytes(parsed) == data


@pytest.mark.parametrize("data", [b"", claims()])
def test_no_claims_are_written_as_no_buffer(data: bytes) -> None:
    parsed = OeCustomClaims.parse(data)
    assert parsed.claims == ()
    assert bytes(parsed) == b""


ONE = claims((b"name\0", b"value"))


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"\x01", "version", 0),
        (u64(2) + u64(0), "version", 0),
        (u64(1), "count", 8),
        (u64(1) + u64(MAX_CLAIMS + 1), "count", 8),
        (u64(1) + b"\xff" * 8, "count", 8),
        (u64(1) + u64(1), "claims[0].name_size", 16),
        (ONE[:31], "claims[0].value_size", 24),
        (poke(ONE, 16, b"\xff" * 8), "claims[0].name", 32),
        (poke(ONE, 24, b"\xff" * 8), "claims[0].value", 37),
        (claims((b"name", b"")), "claims[0].name", 32),
        (claims((b"", b"")), "claims[0].name", 32),
        (claims((b"na\0me\0", b"")), "claims[0].name", 32),
        (claims((b"\xff\0", b"")), "claims[0].name", 32),
        (claims((b"a\0", b""), (b"b", b"")), "claims[1].name", 50),
        (ONE[:-1], "claims[0].value", 37),
        (ONE + b"x", "end", 42),
    ],
)
def test_malformed_claims_are_refused_where_they_go_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        OeCustomClaims.parse(data)
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("OeCustomClaims", field, offset)
