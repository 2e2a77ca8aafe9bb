"""Quotes of every version against hand-written ones and against real ones (dcap.md §1.1, §1.4 to §1.8)."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
from msgspec import structs

from confcom.errors import FormatError
from confcom.formats.quote import (
    HEADER_SIZE,
    MAX_QUOTE,
    CertificationDataType,
    Quote,
    QuoteHeader,
    TeeType,
    shared_part,
)
from made_quotes import (
    ATTESTATION_KEY,
    BODY_SIZES,
    QE_AUTHENTICATION_DATA,
    QE_REPORT,
    QE_REPORT_SIGNATURE,
    SIGNATURE,
    header,
    poke,
    quote_v3,
    quote_v4,
    quote_v5,
    u16,
    u32,
)
from record_layout import check_complete, check_field, distinct

HEADER = [
    ("version", 0, 2),
    ("attestation_key_type", 2, 2),
    ("tee_type", 4, 4),
    ("qe_svn", 8, 2),
    ("pce_svn", 10, 2),
    ("qe_vendor_id", 12, 16),
    ("user_data", 28, 20),
]

# Name → (bytes, how many of them the attestation key signs, TEE, size of the body).
SHAPES: dict[str, tuple[bytes, int, TeeType, int]] = {
    "v3": (quote_v3(), 432, TeeType.SGX, 384),
    "v4 SGX": (quote_v4(0), 432, TeeType.SGX, 384),
    "v4 TDX": (quote_v4(), 632, TeeType.TDX, 584),
    "v5 SGX": (quote_v5(1), 438, TeeType.SGX, 384),
    "v5 TD 1.0": (quote_v5(2), 638, TeeType.TDX, 584),
    "v5 TD 1.5": (quote_v5(3), 702, TeeType.TDX, 648),
    "v5 TD 1.5Ex": (quote_v5(4), 939, TeeType.TDX, 885),
}


def test_the_header_has_the_documented_layout() -> None:
    check_complete(QuoteHeader, HEADER)
    assert QuoteHeader.size() == HEADER_SIZE == 48
    for row in HEADER:
        check_field(QuoteHeader, *row)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_version_is_read_field_by_field_and_written_back(shape: str) -> None:
    data, signed, tee, body_size = SHAPES[shape]
    quote = Quote.parse(data)
    assert (quote.header.qe_svn, quote.header.pce_svn, quote.header.user_data) == (0x0908, 0x0B0A, distinct(20, 50))
    assert quote.tee is tee
    assert bytes(quote.body) == distinct(body_size)
    assert quote.report_data == quote.body.report_data
    assert quote.signed_bytes == data[:signed]
    assert (quote.signature.signature, quote.signature.attestation_key) == (SIGNATURE, ATTESTATION_KEY)
    certification = quote.signature.certification
    assert bytes(certification.qe_report) == QE_REPORT
    assert certification.qe_report_signature == QE_REPORT_SIGNATURE
    assert certification.qe_authentication_data == QE_AUTHENTICATION_DATA
    assert certification.certification_data.type is CertificationDataType.PCK_CERTIFICATE_CHAIN
    assert certification.certification_data.data == b"chain\0"
    assert (quote.trailing, quote.size, bytes(quote)) == (b"", len(data), data)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_behind_a_quote_is_kept_apart(shape: str) -> None:
    data = SHAPES[shape][0]
    quote = Quote.parse(data + bytes(70))
    assert (quote.trailing, quote.size) == (bytes(70), len(data))
    assert bytes(quote) == data + bytes(70)
    assert structs.replace(quote, trailing=b"") == Quote.parse(data)


def test_the_offsets_of_a_real_version_3_quote() -> None:
    data = quote_v3(data=bytes(3548))
    assert len(data) == 4600
    assert data[432:436] == u32(4164)
    assert (data[436:500], data[500:564]) == (SIGNATURE, ATTESTATION_KEY)
    assert (data[564:948], data[948:1012]) == (QE_REPORT, QE_REPORT_SIGNATURE)
    assert (data[1012:1014], data[1014:1046], data[1046:1052]) == (u16(32), bytes(range(32)), u16(5) + u32(3548))
    assert bytes(Quote.parse(data)) == data


@pytest.mark.parametrize("size", [0, 31, 33, 500, 0xFFFF])
def test_authentication_data_may_have_any_size(size: int) -> None:
    for data in (quote_v3(authentication=distinct(size)), quote_v4(authentication=distinct(size))):
        assert Quote.parse(data).signature.certification.qe_authentication_data == distinct(size)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("make", [quote_v4, quote_v5])
def test_versions_4_and_5_take_every_inner_certification_data_but_type_6(make, number: int) -> None:
    assert Quote.parse(make(number=number)).signature.certification.certification_data.type == number


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"", "header", 0),
        (quote_v3()[:47], "header", 0),
        (poke(quote_v3(), 0, u16(2)), "header.version", 0),
        (poke(quote_v3(), 0, u16(6)), "header.version", 0),
        (poke(quote_v3(), 2, u16(3)), "header.attestation_key_type", 2),
        (poke(quote_v4(), 4, u32(1)), "header.tee_type", 4),
        (poke(quote_v4(), 4, u32(0x81000000)), "header.tee_type", 4),
        (poke(quote_v3(), 4, u32(0x81)), "header.tee_type", 4),
        (poke(quote_v3(), 12, b"\0"), "header.qe_vendor_id", 12),
        (poke(quote_v3(), 27, b"\0"), "header.qe_vendor_id", 12),
        (quote_v3()[:431], "body", 48),
        (quote_v4()[:631], "body", 48),
        (quote_v5(4)[:938], "body", 54),
        (quote_v3()[:435], "signature_data.size", 432),
        (quote_v4()[:635], "signature_data.size", 632),
        (quote_v3()[:-1], "signature_data", 436),
        (poke(quote_v3(), 432, b"\xff" * 4), "signature_data", 436),
        (quote_v5(3)[:-1], "signature_data", 706),
        # One byte less in the section than its fields take, and one more.
        (poke(quote_v3(), 432, u32(len(quote_v3()) - 437)), "certification_data.data", 1052),
        (poke(quote_v3(), 432, u32(len(quote_v3()) - 435)) + b"\0", "signature_data", len(quote_v3())),
        (poke(quote_v3(), 1012, u16(0xFFFF)), "qe_authentication_data", 1014),
        (poke(quote_v3(), 1046, u16(0)), "certification_data.type", 1046),
        (quote_v3(number=6), "certification_data.type", 1046),
        (quote_v3(number=7), "certification_data.type", 1046),
        (poke(quote_v3(), 1048, u32(1 << 31)), "certification_data.size", 1048),
        (quote_v4(outer=5), "certification_data.type", 764),
        (poke(quote_v4(), 766, u32(0xFFFFFFFF)), "certification_data.size", 766),
        (quote_v4(number=6), "certification_data.certification_data.type", 1252),
        (poke(quote_v5(), 48, u16(0)), "body.type", 48),
        (poke(quote_v5(), 48, u16(5)), "body.type", 48),
        (poke(quote_v5(), 48, u16(1)), "body.type", 48),
        (poke(quote_v5(1), 48, u16(2)), "body.type", 48),
        (poke(quote_v5(3), 48, u16(2)), "body.size", 50),
        (poke(quote_v5(3), 50, u32(584)), "body.size", 50),
        (poke(quote_v5(3), 50, u32(0xFFFFFFFF)), "body.size", 50),
    ],
)
def test_malformed_quotes_are_refused_where_they_go_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        Quote.parse(data)
    found = caught.value
    assert (found.structure, found.field, found.offset) == ("Quote", field, offset)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_truncation_is_refused(shape: str) -> None:
    data = SHAPES[shape][0]
    for size in range(len(data)):
        with pytest.raises(FormatError):
            Quote.parse(data[:size])


def test_a_quote_has_a_limit() -> None:
    data = quote_v3()
    assert Quote.parse(data.ljust(MAX_QUOTE, b"\0")).size == len(data)
    with pytest.raises(FormatError, match="over the limit"):
        Quote.parse(data.ljust(MAX_QUOTE + 1, b"\0"))


def test_every_body_type_of_version_5_has_its_own_size() -> None:
    for body_type, size in BODY_SIZES.items():
        wrong = header(5, 0 if body_type == 1 else 0x81) + u16(body_type) + u32(size + 1) + bytes(size + 1)
        with pytest.raises(FormatError, match=f"has {size} bytes, found {size + 1}"):
            Quote.parse(wrong)


@pytest.mark.vectors
def test_every_real_and_simulated_quote_is_read_and_written_back(vectors: Path) -> None:
    files = [*sorted((vectors / "real").glob("*/quote.bin")), *sorted((vectors / "sim").glob("*/quote.bin"))]
    assert len(files) > 150
    versions = set()
    for file in files:
        data = file.read_bytes()
        quote = Quote.parse(data)
        assert bytes(quote) == data, file
        assert bytes(structs.replace(quote, header=dataclasses.replace(quote.header))) == data, file
        versions.add((quote.header.version, quote.tee))
    assert versions == {(3, TeeType.SGX), (4, TeeType.TDX), (5, TeeType.TDX)}


@pytest.mark.vectors
def test_mutated_quotes_are_malformed_exactly_where_their_label_says_so(vectors: Path) -> None:
    with (vectors / "negative" / "index.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) > 150
    # Labelled "reject or accept": some byte of the signature section belongs to no field, or a field is cut.
    inconsistent = {"certsize-minus1", "siglen-plus1", "siglen-minus1"}
    for row in rows:
        data = (vectors / "negative" / row["name"] / "quote.bin").read_bytes()
        try:
            quote = Quote.parse(data)
        except FormatError:
            well_formed = False
        else:
            well_formed = True
            assert bytes(quote) == data, row["name"]
        expected = row["expected"] != "reject:FORMAT" and row["mutation"] not in inconsistent
        assert well_formed == expected, row["name"]


@pytest.mark.parametrize("shape", SHAPES)
def test_quotes_share_all_but_report_data_and_signature(shape: str) -> None:
    data, signed, _, _ = SHAPES[shape]
    shared, quote = shared_part(data), Quote.parse(data)
    if shape.startswith("v5"):
        assert shared == b""
        return
    own = [*range(signed - 64, signed), *range(signed + 4, signed + 68)]
    for place in range(len(data)):
        other = poke(data, place, bytes((data[place] ^ 1,)))
        assert (shared_part(other) == shared) is (place in own), place
        if place in own:
            assert quote.similar(other) == Quote.parse(other)
            assert bytes(quote.similar(other)) == other
    for other in (data[:-1], data[:signed], data[:8], b"", data + b"\0"):
        assert shared_part(other) != shared
    assert shared_part(data.ljust(16 << 10, b"\0")) != b""
    assert shared_part(data.ljust((16 << 10) + 1, b"\0")) == b""
