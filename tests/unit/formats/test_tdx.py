"""TD report bodies against the documented offsets (dcap.md §1.3)."""

from __future__ import annotations

import pytest

from confcom.errors import FormatError
from confcom.formats.codec import Record
from confcom.formats.sgx import TdAttributeFlags, TdReportBody10, TdReportBody15, TdReportBody15Ex, td_base
from record_layout import check_complete, check_field, distinct

TD_10 = [
    ("tee_tcb_svn", 0, 16),
    ("mr_seam", 16, 48),
    ("mr_signer_seam", 64, 48),
    ("seam_attributes", 112, 8),
    ("td_attributes", 120, 8),
    ("xfam", 128, 8),
    ("mr_td", 136, 48),
    ("mr_config_id", 184, 48),
    ("mr_owner", 232, 48),
    ("mr_owner_config", 280, 48),
    ("rtmr0", 328, 48),
    ("rtmr1", 376, 48),
    ("rtmr2", 424, 48),
    ("rtmr3", 472, 48),
    ("report_data", 520, 64),
]
LAYOUTS: dict[type[Record], list[tuple[str, int, int]]] = {
    TdReportBody10: TD_10,
    TdReportBody15: [("base", 0, 584), ("tee_tcb_svn2", 584, 16), ("mr_service_td", 600, 48)],
    TdReportBody15Ex: [
        ("body.base", 0, 584),
        ("body.tee_tcb_svn2", 584, 16),
        ("body.mr_service_td", 600, 48),
        ("vm_id", 648, 1),
        ("td_id", 649, 32),
        ("device_info_hash", 681, 48),
        ("init_service_td_hash", 729, 48),
        ("init_service_td_attributes", 777, 8),
        ("init_cpu_svn", 785, 16),
        ("init_tee_tcb_svn", 801, 16),
        ("init_tee_fmspc", 817, 12),
        ("current_service_td_hash", 829, 48),
        ("current_service_td_attributes", 877, 8),
    ],
}
SIZES = {TdReportBody10: 584, TdReportBody15: 648, TdReportBody15Ex: 885}
ROWS = [(kind, *row) for kind, rows in LAYOUTS.items() for row in rows]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_table_covers_the_struct(kind: type[Record]) -> None:
    check_complete(kind, LAYOUTS[kind])
    assert kind.size() == SIZES[kind]


@pytest.mark.parametrize(("kind", "path", "offset", "size"), ROWS, ids=[f"{k.__name__}.{p}" for k, p, _, _ in ROWS])
def test_every_field_stands_at_its_documented_offset(kind: type[Record], path: str, offset: int, size: int) -> None:
    check_field(kind, path, offset, size)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_byte_too_few_or_too_many_is_refused(kind: type[Record], change: int) -> None:
    with pytest.raises(FormatError) as caught:
        kind.parse(bytes(kind.size() + change))
    assert (caught.value.structure, caught.value.offset) == (kind.__name__, 0)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_body_shows_its_tdx_10_part(kind) -> None:
    data = distinct(kind.size())
    body = kind.parse(data)
    assert bytes(td_base(body)) == data[:584]
    assert body.report_data == data[520:584]


def test_the_extended_body_shows_its_tdx_15_part() -> None:
    data = distinct(885)
    body = TdReportBody15Ex.parse(data)
    assert (body.tee_tcb_svn2, body.mr_service_td) == (data[584:600], data[600:648])


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0, "DEBUG"), (28, "SEPT_VE_DISABLE"), (29, "MIGRATABLE"), (30, "PKS"), (31, "KL"), (63, "PERFMON")],
)
def test_the_documented_attribute_bits(bit: int, name: str) -> None:
    data = bytearray(584)
    data[120 + bit // 8] = 1 << bit % 8
    body = TdReportBody10.parse(bytes(data))
    assert TdAttributeFlags(body.td_attributes) is TdAttributeFlags[name]
    assert body.debug == (name == "DEBUG")
