"""Explains quotes of every version, and Open Enclave's wrappings of them."""

from __future__ import annotations

from confcom.appraisal.inspection.certificate import certificates_of_pem, chain_item
from confcom.appraisal.inspection.enclave import (
    report_body_group,
    report_body_items,
    report_items,
    td_body_items,
)
from confcom.appraisal.inspection.items import Explain, Item, attempt, bytes_item, group, listing, record_items
from confcom.errors import FormatError
from confcom.formats.certification_data import CertificationData, CertificationDataType
from confcom.formats.open_enclave import (
    FORMAT_LOCAL_ATTESTATION,
    FORMAT_NAMES,
    OeCustomClaims,
    OeEvidence,
    OeReport,
    OeReportType,
)
from confcom.formats.quote import HEADER_SIZE, Quote
from confcom.formats.sgx import Report, ReportBody

_CERTIFICATION_TYPES = {
    CertificationDataType.PPID_CLEARTEXT: "PPID in clear, CPUSVN, PCESVN, PCE-ID: the PCK certificate is elsewhere",
    CertificationDataType.PPID_ENCRYPTED_RSA_2048: "encrypted PPID (RSA-2048): the PCK certificate is elsewhere",
    CertificationDataType.PPID_ENCRYPTED_RSA_3072: "encrypted PPID (RSA-3072): the PCK certificate is elsewhere",
    CertificationDataType.PCK_CERTIFICATE: "PCK certificate without its chain",
    CertificationDataType.PCK_CERTIFICATE_CHAIN: "PCK certificate chain",
    CertificationDataType.QE_REPORT: "QE report and what certifies it",
    CertificationDataType.PLATFORM_MANIFEST: "platform manifest",
}
_PLATFORM_IDS = tuple(CertificationDataType)[:3]


def quote_title(quote: Quote) -> str:
    """One line about a quote."""
    return f"{quote.tee.name} quote, version {quote.header.version}"


def quote_items(quote: Quote) -> tuple[Item, ...]:
    """A quote: header, body, signature section, and what trails it."""
    return (
        _header(quote),
        _body(quote),
        *_signature(quote, len(quote.signed_bytes) + 4),
        *_trailing(quote),
    )


def _header(quote: Quote) -> Item:
    meanings: Explain = {
        "attestation_key_type": "ECDSA on P-256",
        "tee_type": quote.tee.name,
        "qe_svn": "ISVSVN of the quoting enclave; decides nothing",
        "pce_svn": "ISVSVN of the PCE; decides nothing",
        "qe_vendor_id": "Intel",
        "user_data": "QE_ID (16 bytes), names the platform to a caching service",
    }
    items = record_items(quote.header, meanings)
    return group("header", items, offset=0, size=HEADER_SIZE)


def _body(quote: Quote) -> Item:
    start = len(quote.signed_bytes) - len(bytes(quote.body))
    if isinstance(quote.body, ReportBody):
        items, meaning = report_body_items(quote.body, start), "who the enclave is, and what it says"
    else:
        items, meaning = td_body_items(quote.body, start), "who the TD is, and what it says"
    return group("body", items, meaning, offset=start, size=len(bytes(quote.body)))


def _signature(quote: Quote, start: int) -> tuple[Item, ...]:
    signature, certification = quote.signature, quote.signature.certification
    # Versions 4 and 5 put the QE report into certification data of its own: 6 more bytes.
    report_at = start + 128 + (0 if quote.header.version == 3 else 6)
    authentication_at = report_at + ReportBody.size() + 64 + 2
    data_at = authentication_at + len(certification.qe_authentication_data)
    over = "header and body" if quote.header.version < 5 else "header, body type, size and body"
    return (
        bytes_item("signature", signature.signature, f"r‖s by the attestation key, over {over}", offset=start),
        bytes_item("attestation_key", signature.attestation_key, "x‖y, P-256", offset=start + 64),
        report_body_group("qe_report", certification.qe_report, report_at, "the quoting enclave vouches for that key"),
        bytes_item(
            "qe_report_signature",
            certification.qe_report_signature,
            "r‖s by the PCK key, over the QE report",
            offset=report_at + ReportBody.size(),
        ),
        bytes_item(
            "qe_authentication_data",
            certification.qe_authentication_data,
            "hashed with the attestation key into the QE's report data",
            offset=authentication_at,
        ),
        certification_item(certification.certification_data, data_at),
    )


def certification_item(entry: CertificationData, offset: int) -> Item:
    """Certification data, with the certificates in it."""
    items = [Item("type", int(entry.type), _CERTIFICATION_TYPES[entry.type], offset, 2)]
    if entry.type == CertificationDataType.PCK_CERTIFICATE_CHAIN:
        items.append(attempt("certificates", lambda: chain_item("certificates", certificates_of_pem(entry.data))))
    elif entry.type in _PLATFORM_IDS:
        meanings = {"ppid": "PPID, names the processor package", "encrypted_ppid": "RSA-OAEP"}
        items.append(
            attempt("platform", lambda: group("platform", record_items(entry.ppid(), meanings, offset=offset + 6)))
        )
    else:
        items.append(bytes_item("data", entry.data, offset=offset + 6))
    return group("certification_data", items, offset=offset, size=6 + len(entry.data))


def _trailing(quote: Quote) -> tuple[Item, ...]:
    if not quote.trailing:
        return ()
    content = "bytes, not all zero" if any(quote.trailing) else "zero bytes"
    size = len(quote.trailing)
    return (Item("trailing", size, f"{content} after the quote, which nobody reads", quote.size, size),)


def quote_group(name: str, data: bytes) -> Item:
    """A quote inside something else; offsets count from its own beginning."""

    def make() -> Item:
        quote = Quote.parse(data)
        return group(name, quote_items(quote), f"{quote_title(quote)}; places count from its beginning")

    return attempt(name, make)


def oe_report_items(report: OeReport) -> tuple[Item, ...]:
    """An Open Enclave report, with the quote or the local report in it."""
    remote = report.header.report_type == OeReportType.REMOTE
    header = record_items(report.header, {"report_type": "remote: a quote" if remote else "local: no quote"})
    return (group("header", header, offset=0, size=16), _wrapped(report.report, remote=remote))


def oe_evidence_items(evidence: OeEvidence) -> tuple[Item, ...]:
    """Open Enclave evidence: quote (or local report) and custom claims."""
    header = group(
        "header",
        record_items(evidence.header, {"format_id": FORMAT_NAMES[evidence.header.format], "padding": "not used"}),
        offset=0,
        size=32,
    )
    if evidence.header.format == FORMAT_LOCAL_ATTESTATION:
        size = Report.size()
        return header, _wrapped(evidence.data[:size], remote=False), _claims(evidence.data[size:])
    quote, claims = evidence.split()
    items = (header, _wrapped(quote, remote=True))
    return items if claims is None else (*items, _claims(claims))


def _wrapped(data: bytes, *, remote: bool) -> Item:
    if remote:
        return quote_group("quote", data)
    return attempt("report", lambda: group("report", report_items(Report.parse(data)), "checked by its target alone"))


def _claims(data: bytes) -> Item:
    meaning = "custom claims; SHA-256 of the buffer stands in the report data"
    try:
        found = OeCustomClaims.parse(data).claims
    except FormatError:
        return bytes_item("custom_claims", data, f"{meaning}; not in Open Enclave's own layout of claims")
    members = [group("", [Item("name", name), bytes_item("value", value)]) for name, value in found]
    return listing("custom_claims", members, meaning if members else f"{meaning}: none")
