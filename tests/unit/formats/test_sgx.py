"""SGX structs against the documented offsets (dcap.md §1.2, aesm-protocol.md §5)."""

from __future__ import annotations

import pytest

from confcom.errors import FormatError
from confcom.formats.codec import Record
from confcom.formats.sgx import Attributes, QeReportInfo, Report, ReportBody, TargetInfo
from record_layout import check_complete, check_field, distinct

LAYOUTS: dict[type[Record], list[tuple[str, int, int]]] = {
    Attributes: [("flags", 0, 8), ("xfrm", 8, 8)],
    ReportBody: [
        ("cpu_svn", 0, 16),
        ("misc_select", 16, 4),
        ("reserved1", 20, 12),
        ("isv_ext_prod_id", 32, 16),
        ("attributes.flags", 48, 8),
        ("attributes.xfrm", 56, 8),
        ("mr_enclave", 64, 32),
        ("reserved2", 96, 32),
        ("mr_signer", 128, 32),
        ("reserved3", 160, 32),
        ("config_id", 192, 64),
        ("isv_prod_id", 256, 2),
        ("isv_svn", 258, 2),
        ("config_svn", 260, 2),
        ("reserved4", 262, 42),
        ("isv_family_id", 304, 16),
        ("report_data", 320, 64),
    ],
    Report: [("body", 0, 384), ("key_id", 384, 32), ("mac", 416, 16)],
    TargetInfo: [
        ("mr_enclave", 0, 32),
        ("attributes", 32, 16),
        ("reserved1", 48, 2),
        ("config_svn", 50, 2),
        ("misc_select", 52, 4),
        ("reserved2", 56, 8),
        ("config_id", 64, 64),
        ("reserved3", 128, 384),
    ],
    QeReportInfo: [("nonce", 0, 16), ("app_enclave_target_info", 16, 512), ("qe_report", 528, 432)],
}
SIZES = {Attributes: 16, ReportBody: 384, Report: 432, TargetInfo: 512, QeReportInfo: 960}
ROWS = [(kind, *row) for kind, rows in LAYOUTS.items() for row in rows]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_table_covers_the_struct(kind: type[Record]) -> None:
    check_complete(kind, LAYOUTS[kind])
    assert kind.size() == SIZES[kind]


@pytest.mark.parametrize(("kind", "path", "offset", "size"), ROWS, ids=[f"{k.__name__}.{p}" for k, p, _, _ in ROWS])
def test_every_field_stands_at_its_documented_offset(kind: type[Record], path: str, offset: int, size: int) -> None:
    check_field(kind, path, offset, size)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_reserved_bytes_survive_a_round_trip(kind: type[Record]) -> None:
    data = distinct(kind.size())
    assert bytes(kind.parse(data)) == data


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_byte_too_few_or_too_many_is_refused(kind: type[Record], change: int) -> None:
    with pytest.raises(FormatError) as caught:
        kind.parse(bytes(kind.size() + change))
    assert (caught.value.structure, caught.value.offset) == (kind.__name__, 0)


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0, "INIT"),
        (1, "DEBUG"),
        (2, "MODE64BIT"),
        (3, "bit3"),
        (4, "PROVISIONKEY"),
        (5, "EINITTOKENKEY"),
        (7, "KSS"),
        (10, "AEXNOTIFY"),
        (63, "bit63"),
    ],
)
def test_every_flag_has_its_name(bit: int, name: str) -> None:
    attributes = Attributes(1 << bit, 3)
    assert attributes.flag_names == (name,)
    assert attributes.debug == (bit == 1)


def test_a_real_quoting_enclaves_flags() -> None:
    assert Attributes(0x15, 0xE7).flag_names == ("INIT", "MODE64BIT", "PROVISIONKEY")


def test_the_target_info_of_an_enclave_takes_what_ereport_needs_from_its_report() -> None:
    body = ReportBody.parse(distinct(384))
    target = TargetInfo.of(body)
    expected = bytearray(512)
    expected[0:32] = body.mr_enclave
    expected[32:48] = bytes(body.attributes)
    expected[50:52] = body.config_svn.to_bytes(2, "little")
    expected[52:56] = body.misc_select.to_bytes(4, "little")
    expected[64:128] = body.config_id
    assert bytes(target) == expected
