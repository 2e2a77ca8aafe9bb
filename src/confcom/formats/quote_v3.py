"""Quote version 3 (SGX only): body at 48, signature section at 436, the QE report flat inside it (`sgx_quote_3.h`)."""

from __future__ import annotations

from confcom.formats.certification_data import CertificationDataType, QeReportCertification
from confcom.formats.cursor import Cursor
from confcom.formats.quote_section import QuoteSignature
from confcom.formats.sgx import ReportBody
from confcom.formats.tdx import TdReportBody

# Types 6 and 7 belong to versions 4 and 5.
_LAST_TYPE = CertificationDataType.PCK_CERTIFICATE_CHAIN


def read_body(cursor: Cursor, tee_type: int) -> ReportBody | TdReportBody:
    """Read the 384-byte report body."""
    del tee_type  # the header check leaves SGX only
    return ReportBody.parse(cursor.take(ReportBody.size(), "body"))


def read_signature(section: bytes, start: int) -> QuoteSignature:
    """Read the signature section; `start` is its offset in the quote, for errors."""
    cursor = Cursor(bytes(start) + section, "Quote", start)
    signature = cursor.take(64, "signature")
    attestation_key = cursor.take(64, "attestation_key")
    certification = QeReportCertification.read(cursor)
    cursor.finish("signature_data")
    entry = certification.certification_data
    if entry.type > _LAST_TYPE:
        at = cursor.offset - len(bytes(entry))
        raise cursor.error(f"type {entry.type} does not exist in version 3", "certification_data.type", at)
    return QuoteSignature(signature, attestation_key, certification)


def write_signature(signature: QuoteSignature) -> bytes:
    """Write the signature section."""
    return signature.signature + signature.attestation_key + bytes(signature.certification)
