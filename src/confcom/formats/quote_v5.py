"""Quote version 5: a body descriptor (type u16, size u32) precedes the body and is signed with it (`sgx_quote_5.h`)."""

from __future__ import annotations

from confcom.formats.cursor import Cursor
from confcom.formats.quote_section import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tdx import TdReportBody, TdReportBody10, TdReportBody15, TdReportBody15Ex

BODY_TYPES: dict[int, type[ReportBody] | type[TdReportBody10] | type[TdReportBody15] | type[TdReportBody15Ex]] = {
    1: ReportBody,
    2: TdReportBody10,
    3: TdReportBody15,
    4: TdReportBody15Ex,
}
_NUMBERS: dict[type, int] = {kind: number for number, kind in BODY_TYPES.items()}


def read_body(cursor: Cursor, tee_type: int) -> ReportBody | TdReportBody:
    """Read descriptor and body: type and size must belong together, and to the header's TEE."""
    start = cursor.offset
    number = cursor.u16("body.type")
    kind = BODY_TYPES.get(number)
    if kind is None:
        raise cursor.error(f"unknown body type {number}, expected 1 to 4", "body.type", start)
    if (kind is ReportBody) != (tee_type == TeeType.SGX):
        raise cursor.error(f"body type {number} does not fit TEE type {tee_type:#x}", "body.type", start)
    size = cursor.u32("body.size")
    if size != kind.size():
        raise cursor.error(f"body type {number} has {kind.size()} bytes, found {size}", "body.size", start + 2)
    return kind.parse(cursor.take(size, "body"))


def write_body(body: ReportBody | TdReportBody) -> bytes:
    """Write descriptor and body."""
    content = bytes(body)
    return _NUMBERS[type(body)].to_bytes(2, "little") + len(content).to_bytes(4, "little") + content
