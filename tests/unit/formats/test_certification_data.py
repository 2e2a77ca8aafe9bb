"""QE certification data of every type (dcap.md §1.7)."""

from __future__ import annotations

import pytest

from confcom.errors import FormatError
from confcom.formats.codec import Record
from confcom.formats.quote import (
    MAX_CERTIFICATION_DATA,
    CertificationData,
    CertificationDataType,
    PpidCleartext,
    PpidEncryptedRsa2048,
    PpidEncryptedRsa3072,
    QeReportCertification,
)
from made_quotes import QE_AUTHENTICATION_DATA, QE_REPORT, QE_REPORT_SIGNATURE, entry, qe_part
from record_layout import check_complete, check_field, distinct

PPIDS: dict[type[Record], list[tuple[str, int, int]]] = {
    PpidCleartext: [("ppid", 0, 16), ("cpu_svn", 16, 16), ("pce_svn", 32, 2), ("pce_id", 34, 2)],
    PpidEncryptedRsa2048: [("encrypted_ppid", 0, 256), ("cpu_svn", 256, 16), ("pce_svn", 272, 2), ("pce_id", 274, 2)],
    PpidEncryptedRsa3072: [("encrypted_ppid", 0, 384), ("cpu_svn", 384, 16), ("pce_svn", 400, 2), ("pce_id", 402, 2)],
}
SIZES = {PpidCleartext: 36, PpidEncryptedRsa2048: 276, PpidEncryptedRsa3072: 404}


@pytest.mark.parametrize("kind", PPIDS)
def test_the_ppid_structs_have_the_documented_layout(kind: type[Record]) -> None:
    check_complete(kind, PPIDS[kind])
    assert kind.size() == SIZES[kind]
    for row in PPIDS[kind]:
        check_field(kind, *row)


@pytest.mark.parametrize("number", range(1, 8))
def test_every_type_of_intels_table_is_read_and_written(number: int) -> None:
    data = entry(number, b"content")
    parsed = CertificationData.parse(data)
    assert (parsed.type, parsed.data) == (CertificationDataType(number), b"content")
    assert bytes(parsed) == data


@pytest.mark.parametrize(("number", "kind"), [(1, PpidCleartext), (2, PpidEncryptedRsa2048), (3, PpidEncryptedRsa3072)])
def test_types_1_to_3_hold_platform_ids(number: int, kind: type[Record]) -> None:
    data = distinct(kind.size())
    assert CertificationData.parse(entry(number, data)).ppid() == kind.parse(data)


@pytest.mark.parametrize(("number", "size"), [(1, 35), (1, 37), (2, 275), (3, 403), (3, 0)])
def test_platform_ids_of_another_size_are_refused(number: int, size: int) -> None:
    with pytest.raises(FormatError, match=f"type {number} has [0-9]+ bytes, found {size}") as caught:
        CertificationData.parse(entry(number, bytes(size))).ppid()
    assert (caught.value.structure, caught.value.field) == ("Quote", "certification_data.size")


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_the_other_types_hold_none(number: int) -> None:
    with pytest.raises(FormatError, match="holds no PPID") as caught:
        CertificationData.parse(entry(number, bytes(404))).ppid()
    assert (caught.value.structure, caught.value.field) == ("CertificationData", "type")


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"", "certification_data.type", 0),
        (b"\x05", "certification_data.type", 0),
        (entry(0, b""), "certification_data.type", 0),
        (entry(8, b""), "certification_data.type", 0),
        (entry(0xFFFF, b""), "certification_data.type", 0),
        (b"\x05\x00\x01\x00\x00", "certification_data.size", 2),
        (b"\x05\x00" + b"\xff" * 4, "certification_data.size", 2),
        (b"\x05\x00" + (MAX_CERTIFICATION_DATA + 1).to_bytes(4, "little"), "certification_data.size", 2),
        (b"\x05\x00" + (MAX_CERTIFICATION_DATA).to_bytes(4, "little"), "certification_data.data", 6),
        (entry(5, b"chain")[:-1], "certification_data.data", 6),
        (entry(5, b"chain") + b"\0", "end", 11),
    ],
)
def test_malformed_entries_are_refused_where_they_go_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        CertificationData.parse(data)
    found = caught.value
    assert (found.structure, found.field, found.offset) == ("CertificationData", field, offset)


def test_the_largest_entry_is_read() -> None:
    data = entry(7, bytes(MAX_CERTIFICATION_DATA))
    assert bytes(CertificationData.parse(data)) == data


@pytest.mark.parametrize("authentication", [b"", QE_AUTHENTICATION_DATA, bytes(0xFFFF)])
def test_the_qe_part_is_read_field_by_field(authentication: bytes) -> None:
    data = qe_part(entry(5, b"chain\0"), authentication)
    parsed = QeReportCertification.parse(data)
    assert bytes(parsed.qe_report) == QE_REPORT
    assert parsed.qe_report_signature == QE_REPORT_SIGNATURE
    assert parsed.qe_authentication_data == authentication
    assert parsed.certification_data == CertificationData(CertificationDataType.PCK_CERTIFICATE_CHAIN, b"chain\0")
    assert bytes(parsed) == data


@pytest.mark.parametrize(
    ("size", "field", "offset"),
    [
        (383, "qe_report", 0),
        (447, "qe_report_signature", 384),
        (449, "qe_authentication_data.size", 448),
        (481, "qe_authentication_data", 450),
        (483, "certification_data.type", 482),
        (487, "certification_data.size", 484),
        (493, "certification_data.data", 488),
    ],
)
def test_a_qe_part_cut_short_names_the_field(size: int, field: str, offset: int) -> None:
    data = qe_part(entry(5, b"chain\0"))
    assert len(data) == 494
    with pytest.raises(FormatError) as caught:
        QeReportCertification.parse(data[:size])
    found = caught.value
    assert (found.structure, found.field, found.offset) == ("QeReportCertification", field, offset)


def test_a_qe_part_with_more_behind_it_is_refused() -> None:
    with pytest.raises(FormatError, match="1 bytes too many"):
        QeReportCertification.parse(qe_part(entry(5, b"chain")) + b"\0")
