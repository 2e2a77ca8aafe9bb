"""For every value of every binary layout: what is written is read back; for every bytes: a value or a FormatError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.formats.attestation_key_id import AttestationKeyId, AttestationKeyIdList
from confcom.formats.codec import U8, U16, U32, U64, Record, nested
from confcom.formats.evidence import (
    FORMAT_NAMES,
    FORMAT_SGX_ECDSA,
    EvidenceFile,
    OeCustomClaims,
    OeEvidence,
    OeEvidenceHeader,
    OeReport,
    OeReportHeader,
)
from confcom.formats.quote import (
    INTEL_QE_VENDOR_ID,
    CertificationData,
    CertificationDataType,
    PpidCleartext,
    PpidEncryptedRsa2048,
    PpidEncryptedRsa3072,
    QeReportCertification,
    Quote,
    QuoteHeader,
    QuoteSignature,
    TeeType,
)
from confcom.formats.sgx import (
    QeReportInfo,
    Report,
    ReportBody,
    TargetInfo,
    TdReportBody10,
    TdReportBody15,
    TdReportBody15Ex,
)

BITS = {U8: 8, U16: 16, U32: 32, U64: 64}


def record(kind: type[Record], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of a fixed-size struct, some of its fields restricted."""
    hints = get_type_hints(kind, include_extras=True)
    free = {item.name: _field(hints[item.name]) for item in fields(kind)}
    return st.builds(kind, **(free | fixed))


def _field(hint: Any) -> st.SearchStrategy[Any]:
    kind, code = get_args(hint)[:2]
    if code == nested:
        return record(kind)
    return st.integers(0, 2 ** BITS[code] - 1) if code in BITS else fixed_bytes(int(code[:-1]))


def fixed_bytes(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of one size. Long fields are drawn as a short pattern, which keeps examples small."""
    if size <= 16:
        return st.binary(min_size=size, max_size=size)
    return st.binary(min_size=1, max_size=8).map(lambda pattern: (pattern * size)[:size])


RECORDS: list[type[Record]] = [
    ReportBody, Report, TargetInfo, QeReportInfo, TdReportBody10, TdReportBody15, TdReportBody15Ex, QuoteHeader,
    AttestationKeyId, PpidCleartext, PpidEncryptedRsa2048, PpidEncryptedRsa3072, OeReportHeader, OeEvidenceHeader,
]  # fmt: skip

ppids = st.one_of(
    st.tuples(st.just(CertificationDataType.PPID_CLEARTEXT), record(PpidCleartext).map(bytes)),
    st.tuples(st.just(CertificationDataType.PPID_ENCRYPTED_RSA_2048), record(PpidEncryptedRsa2048).map(bytes)),
    st.tuples(st.just(CertificationDataType.PPID_ENCRYPTED_RSA_3072), record(PpidEncryptedRsa3072).map(bytes)),
)


def entries(*types: CertificationDataType) -> st.SearchStrategy[CertificationData]:
    """Certification data of these types with any content, or platform ids of the right size."""
    return st.builds(CertificationData, st.sampled_from(types), st.binary(max_size=200)) | ppids.map(
        lambda pair: CertificationData(*pair)
    )


def certifications(*types: CertificationDataType) -> st.SearchStrategy[QeReportCertification]:
    return st.builds(
        QeReportCertification, record(ReportBody), fixed_bytes(64), st.binary(max_size=64), entries(*types)
    )


def quotes_of(
    version: int, tee: TeeType, body: st.SearchStrategy[Any], *types: CertificationDataType
) -> st.SearchStrategy[Quote]:
    header = record(
        QuoteHeader,
        version=st.just(version),
        attestation_key_type=st.just(2),
        tee_type=st.just(int(tee)),
        qe_vendor_id=st.just(INTEL_QE_VENDOR_ID),
    )
    signature = st.builds(QuoteSignature, fixed_bytes(64), fixed_bytes(64), certifications(*types))
    return st.builds(Quote, header, body, signature, st.binary(max_size=40))


ALL_TYPES = tuple(CertificationDataType)
IN_V3 = ALL_TYPES[:5]
IN_TYPE_6 = tuple(number for number in ALL_TYPES if number is not CertificationDataType.QE_REPORT)
sgx_bodies = record(ReportBody)
quotes = st.one_of(
    quotes_of(3, TeeType.SGX, sgx_bodies, *IN_V3),
    quotes_of(4, TeeType.SGX, sgx_bodies, *IN_TYPE_6),
    quotes_of(4, TeeType.TDX, record(TdReportBody10), *IN_TYPE_6),
    quotes_of(5, TeeType.SGX, sgx_bodies, *IN_TYPE_6),
    *(
        quotes_of(5, TeeType.TDX, record(kind), *IN_TYPE_6)
        for kind in (TdReportBody10, TdReportBody15, TdReportBody15Ex)
    ),
)
claims = st.builds(
    OeCustomClaims,
    st.lists(
        st.tuples(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), st.binary(max_size=40)),
        max_size=5,
    ).map(tuple),
)
oe_reports = st.builds(
    lambda kind, content: OeReport(OeReportHeader(1, kind, len(content)), content),
    st.sampled_from([1, 2]),
    st.binary(max_size=100),
)
oe_evidences = st.builds(
    lambda name, padding, content: OeEvidence(OeEvidenceHeader(3, name.bytes, padding, len(content)), content),
    st.sampled_from(list(FORMAT_NAMES)),
    fixed_bytes(4),
    st.binary(max_size=100),
)
key_id_lists = st.builds(AttestationKeyIdList, st.lists(record(AttestationKeyId), min_size=1, max_size=10).map(tuple))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_struct_is_read_as_it_was_written(kind: type[Record]) -> None:
    @given(record(kind))
    @settings(max_examples=30, deadline=None)
    def check(value: Record) -> None:
        assert len(bytes(value)) == kind.size()
        parsed = kind.parse(bytes(value))
        assert parsed == value
        assert bytes(parsed) == bytes(value)

    check()


@given(quotes)
@settings(max_examples=200, deadline=None)
def test_every_quote_is_read_as_it_was_written(quote: Quote) -> None:
    parsed = Quote.parse(bytes(quote))
    assert parsed == quote
    assert bytes(parsed) == bytes(quote)
    assert bytes(quote).startswith(quote.signed_bytes)
    assert parsed.size == len(bytes(quote)) - len(quote.trailing)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "certification data": entries(*ALL_TYPES),
    "QE report certification": certifications(*ALL_TYPES),
    "custom claims": claims,
    "Open Enclave report": oe_reports,
    "Open Enclave evidence": oe_evidences,
    "attestation key ids": key_id_lists,
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_read_as_it_was_written(name: str) -> None:
    @given(VALUES[name])
    @settings(max_examples=60, deadline=None)
    def check(value: Any) -> None:
        assert type(value).parse(bytes(value)) == value

    check()


@given(ppids)
@settings(max_examples=30, deadline=None)
def test_platform_ids_come_out_of_their_entry(pair: tuple[CertificationDataType, bytes]) -> None:
    assert bytes(CertificationData(*pair).ppid()) == pair[1]


def wrapped(quote: Quote, buffer: OeCustomClaims) -> bytes:
    content = bytes(quote) + bytes(buffer)
    header = OeEvidenceHeader(3, FORMAT_SGX_ECDSA.bytes, bytes(4), len(content))
    return bytes(OeEvidence(header, content))


# In evidence the claims begin where the quote's own sizes say it ends, so such a quote has nothing trailing it.
evidence_parts = st.tuples(
    quotes_of(3, TeeType.SGX, sgx_bodies, *IN_V3).map(lambda quote: Quote(quote.header, quote.body, quote.signature)),
    claims,
)


@given(evidence_parts)
@settings(max_examples=60, deadline=None)
def test_evidence_gives_back_its_quote_and_its_claims(parts: tuple[Quote, OeCustomClaims]) -> None:
    file = EvidenceFile.parse(wrapped(*parts))
    assert file.quote == parts[0]
    assert file.custom_claims == bytes(parts[1])
    assert OeCustomClaims.parse(file.custom_claims or b"") == parts[1]


def read_whole_evidence(data: bytes) -> EvidenceFile:
    file = EvidenceFile.parse(data)
    OeCustomClaims.parse(file.custom_claims or b"")
    return file


# Name → (valid encodings, the parser, whether what it accepts is written back byte for byte).
PARSERS: dict[str, tuple[st.SearchStrategy[bytes], Callable[[bytes], Any], bool]] = {
    "quote": (quotes.map(bytes), Quote.parse, True),
    "evidence": (st.one_of(evidence_parts.map(lambda p: wrapped(*p)), quotes.map(bytes)), read_whole_evidence, False),
    "evidence as text": (quotes.map(lambda quote: bytes(quote).hex().encode()), read_whole_evidence, False),
    "certification data": (entries(*ALL_TYPES).map(bytes), CertificationData.parse, True),
    "QE report certification": (certifications(*ALL_TYPES).map(bytes), QeReportCertification.parse, True),
    # A buffer that says "no claims" is as good as none.
    "custom claims": (claims.map(bytes), OeCustomClaims.parse, False),
    "Open Enclave report": (oe_reports.map(bytes), OeReport.parse, True),
    "Open Enclave evidence": (oe_evidences.map(bytes), OeEvidence.parse, True),
    "attestation key ids": (key_id_lists.map(bytes), AttestationKeyIdList.parse, True),
    "report": (record(Report).map(bytes), Report.parse, True),
    "QE report info": (record(QeReportInfo).map(bytes), QeReportInfo.parse, True),
}


@st.composite
def damaged(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid encoding with one to three cuts, changed bytes, insertions, deletions or extreme lengths."""
    data = draw(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["cut", "change", "insert", "delete", "length"])):
            case "cut":
                data = data[:at]
            case "change":
                data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 20)) :]
            case _:
                size = draw(st.sampled_from([2, 4, 8]))
                extreme = draw(
                    st.sampled_from([b"\xff" * size, bytes(size), (1 << 8 * size - 1).to_bytes(size, "little")])
                )
                data = data[:at] + extreme + data[at + size :]
    return data


def parse_or_error(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """What a parser makes of the data; nothing but a FormatError is caught."""
    try:
        return parse(data)
    except FormatError as error:
        return error


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_bytes_give_a_value_or_a_format_error(name: str) -> None:
    valid, parse, exact = PARSERS[name]

    @given(damaged(valid) | st.binary(max_size=600))
    @settings(max_examples=120, deadline=None)
    def check(data: bytes) -> None:
        outcome = parse_or_error(parse, data)
        if isinstance(outcome, FormatError):
            assert outcome.offset is None or 0 <= outcome.offset <= len(data)
        elif exact:
            assert bytes(outcome) == data

    check()
