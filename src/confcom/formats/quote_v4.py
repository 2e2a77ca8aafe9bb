"""Quote version 4 (SGX and TDX): the QE report moves into certification data of type 6 (`sgx_quote_4.h`)."""

from __future__ import annotations

from confcom.formats.certification_data import CertificationData, CertificationDataType, QeReportCertification
from confcom.formats.cursor import Cursor
from confcom.formats.quote_section import QuoteSignature, TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tdx import TdReportBody, TdReportBody10


def read_body(cursor: Cursor, tee_type: int) -> ReportBody | TdReportBody:
    """Read the report body: 384 bytes for SGX, 584 for TDX."""
    if tee_type == TeeType.SGX:
        return ReportBody.parse(cursor.take(ReportBody.size(), "body"))
    return TdReportBody10.parse(cursor.take(TdReportBody10.size(), "body"))


def read_signature(section: bytes, start: int) -> QuoteSignature:
    """Read the signature section of versions 4 and 5; `start` is its offset in the quote, for errors."""
    cursor = Cursor(bytes(start) + section, "Quote", start)
    signature = cursor.take(64, "signature")
    attestation_key = cursor.take(64, "attestation_key")
    outer_at = cursor.offset
    outer = CertificationData.read(cursor, "certification_data")
    cursor.finish("signature_data")
    if outer.type != CertificationDataType.QE_REPORT:
        raise cursor.error(f"the outer type must be 6, is {outer.type}", "certification_data.type", outer_at)
    inner = Cursor(cursor.data, "Quote", outer_at + 6)
    certification = QeReportCertification.read(inner)
    inner.finish("certification_data")
    entry = certification.certification_data
    if entry.type == CertificationDataType.QE_REPORT:
        at = inner.offset - len(bytes(entry))
        raise inner.error("type 6 cannot stand inside type 6", "certification_data.certification_data.type", at)
    return QuoteSignature(signature, attestation_key, certification)


def write_signature(signature: QuoteSignature) -> bytes:
    """Write the signature section of versions 4 and 5."""
    outer = CertificationData(CertificationDataType.QE_REPORT, bytes(signature.certification))
    return signature.signature + signature.attestation_key + bytes(outer)
