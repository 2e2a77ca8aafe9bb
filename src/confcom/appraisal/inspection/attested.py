"""Explains certificates that carry evidence for their key (attested TLS).

A module of its own, because the ones of quotes and of other certificates stay apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import new as new_hash
from hashlib import sha256

from confcom.appraisal.inspection import quotes
from confcom.appraisal.inspection.items import Item, attempt, bytes_item, group, listing
from confcom.appraisal.peer import binding_of
from confcom.formats import der
from confcom.formats.attested_certificate import (
    EVIDENCE_EXTENSIONS,
    MAX_ATTESTED_CERTIFICATE,
    AttestedCertificate,
    CertificateFormat,
    RaTlsEvidence,
    evidence_extensions,
    unwrapped,
)
from confcom.formats.der import CertificateParts
from confcom.formats.open_enclave import REPORT_VERSION, OeEvidence, OeReport
from confcom.pki.der import UNREADABLE, name_text

_TITLES = {
    CertificateFormat.RA_TLS: "interoperable RA-TLS (DICE)",
    CertificateFormat.GRAMINE: "Gramine's RA-TLS before 1.8",
    CertificateFormat.INTEL: "RA-TLS of Intel's SDK before 2.22",
    CertificateFormat.OE_REPORT: "Open Enclave report, also of EGo and Azure Attestation",
    CertificateFormat.OE_EVIDENCE: "Open Enclave evidence",
}


def attested_items(data: bytes) -> tuple[Item, ...] | None:
    """A certificate (DER) with evidence, to the last field; None for one without, and for what is no certificate."""
    if len(data) > MAX_ATTESTED_CERTIFICATE:
        return None
    try:
        parts = der.read_certificate_parts(data)
        if not evidence_extensions(parts):
            return None
        subject, issuer, times = name_text(parts.subject), name_text(parts.issuer), (parts.not_before, parts.not_after)
        begin, end = (der.time(*time[:2]).replace(tzinfo=None).isoformat() for time in times)
        algorithm = der.oid_text(der.elements(parts.algorithm)[0][1])
    except (*UNREADABLE, IndexError):
        return None
    key = parts.public_key
    return (
        Item("subject", subject),
        Item("issuer", issuer, "itself: the certificate is self-signed" if issuer == subject else ""),
        Item("serial", f"{parts.serial_number:x}"),
        Item("not_before", f"{begin}Z", "says little: generators write any dates"),
        Item("not_after", f"{end}Z"),
        bytes_item("public_key", key, f"SubjectPublicKeyInfo, SHA-256 {sha256(key).hexdigest()}"),
        Item("signature_algorithm", algorithm),
        bytes_item("signature", parts.signature),
        Item("sha256", sha256(data).hexdigest(), f"of the certificate, {len(data)} bytes"),
        attempt("binding", lambda: _binding(data)),
        *_extensions(parts),
    )


def _binding(data: bytes) -> Item:
    certificate = AttestedCertificate.parse(data)
    rule = binding_of(certificate)
    meaning = "stands in the report data" if rule else "the report data is no hash of this key or its claims"
    return Item("binding", rule or "none", f"{certificate.format}: {meaning}")


def _extensions(parts: CertificateParts) -> Iterator[Item]:
    for identifier, (critical, value) in parts.extensions.items():
        name = der.oid_text(identifier)
        kind = EVIDENCE_EXTENSIONS.get(identifier)
        if kind is None or (kind, value) not in evidence_extensions(parts):
            yield bytes_item(name, value, "extension" + (", critical" if critical else ""))
        else:
            yield attempt(name, lambda k=kind, v=value, n=name: group(n, _evidence(k, v, parts), _TITLES[k]))  # type: ignore[misc]


def _evidence(kind: CertificateFormat, value: bytes, parts: CertificateParts) -> tuple[Item, ...]:
    match kind:
        case CertificateFormat.RA_TLS:
            return _ra_tls(RaTlsEvidence.parse(value), parts)
        case CertificateFormat.OE_EVIDENCE:
            return quotes.oe_evidence_items(OeEvidence.parse(value))
        case CertificateFormat.OE_REPORT:
            content = unwrapped(value)
            if int.from_bytes(content[:4], "little") == REPORT_VERSION:
                return quotes.oe_report_items(OeReport.parse(content))
            return (quotes.quote_group("quote", content),)
        case _:
            return (quotes.quote_group("quote", value),)


def _ra_tls(found: RaTlsEvidence, parts: CertificateParts) -> tuple[Item, ...]:
    own = new_hash(found.hash_name, parts.public_key).digest() == found.key_hash
    meaning = f"{found.hash_name}, {'of this certificate' if own else 'NOT of this certificate'}'s key"
    claims = [("pubkey-hash", found.key_hash, meaning)]
    if found.nonce is not None:
        claims.append(("nonce", found.nonce, "chosen by the verifier, against replay"))
    claims += [(name, value, "") for name, value in found.further.items()]
    members = [group("", [Item("name", name), bytes_item("value", value, text)]) for name, value, text in claims]
    return quotes.quote_group("quote", found.quote), listing("claims", members, "their hash is in the report data")
