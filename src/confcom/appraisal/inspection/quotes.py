"""Explains the structs that describe enclaves and TDs, quotes of every version, and certificates that carry them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import new as new_hash
from hashlib import sha256

from confcom.appraisal.enclave_file import SignedEnclave
from confcom.appraisal.inspection.documents import certificates_of_pem, chain_item
from confcom.appraisal.inspection.items import (
    Explain,
    Item,
    Special,
    attempt,
    bytes_item,
    group,
    listing,
    record_items,
    words,
)
from confcom.appraisal.peer import binding_of
from confcom.errors import FormatError
from confcom.formats import der
from confcom.formats.attestation_key_id import (
    ALGORITHM_ECDSA_P256,
    INTEL_QE3_MR_SIGNER,
    INTEL_TD_QE_MR_SIGNER,
    AttestationKeyId,
    AttestationKeyIdList,
    QlAttestationKeyId,
)
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
from confcom.formats.evidence import (
    FORMAT_LOCAL_ATTESTATION,
    FORMAT_NAMES,
    REPORT_VERSION,
    OeCustomClaims,
    OeEvidence,
    OeReport,
    OeReportType,
)
from confcom.formats.quote import HEADER_SIZE, CertificationData, CertificationDataType, Quote
from confcom.formats.sgx import Attributes, QeReportInfo, Report, ReportBody, TargetInfo, TdAttributeFlags, TdReportBody
from confcom.pki.der import UNREADABLE, name_text

_XFRM_NAMES = {0: "x87", 1: "SSE", 2: "AVX", 3: "MPX", 5: "AVX-512", 9: "PKRU", 11: "CET", 17: "AMX"}


def _signer(value: bytes) -> str:
    known = {INTEL_QE3_MR_SIGNER: "Intel, quoting enclave (QE3)", INTEL_TD_QE_MR_SIGNER: "Intel, TD quoting enclave"}
    name = known.get(value)
    return f"MRSIGNER, hash of the signer's key: who signed the enclave{f' (the value of {name})' if name else ''}"


_REPORT_BODY: Explain = {
    "cpu_svn": "CPUSVN as the processor writes it; TCB levels are matched with the PCK certificate's",
    "misc_select": "MISCSELECT, extra state that is saved on exceptions",
    "isv_ext_prod_id": "extended product id (KSS)",
    "mr_enclave": "MRENCLAVE, hash of code and data as loaded: which build",
    "mr_signer": _signer,
    "config_id": "CONFIGID, chosen at launch (KSS)",
    "isv_prod_id": "ISVPRODID, the signer's product number",
    "isv_svn": "ISVSVN, the signer's security version of that product",
    "config_svn": "CONFIGSVN (KSS)",
    "isv_family_id": "product family (KSS)",
    "report_data": "what the enclave itself says: 64 free bytes",
}


def attributes_item(attributes: Attributes, offset: int) -> Item:
    """ATTRIBUTES with the flags by name."""
    xfrm = (name for bit, name in _XFRM_NAMES.items() if attributes.xfrm >> bit & 1)
    debug = "ON: its memory is open to the host" if attributes.debug else "off"
    return group(
        "attributes",
        [
            Item("flags", f"{attributes.flags:016x}", "as a number", offset, 8),
            words("flag_names", attributes.flag_names),
            Item("debug", attributes.debug, debug),
            Item("xfrm", f"{attributes.xfrm:016x}", f"processor state it may use: {', '.join(xfrm)}", offset + 8, 8),
        ],
        offset=offset,
        size=Attributes.size(),
    )


def report_body_items(body: ReportBody, offset: int = 0) -> tuple[Item, ...]:
    """The 384 bytes of a report body."""
    return record_items(body, _REPORT_BODY, offset=offset, special={"attributes": attributes_item})


def report_body_group(name: str, body: ReportBody, offset: int, meaning: str) -> Item:
    """A report body under a name."""
    return group(name, report_body_items(body, offset), meaning, offset=offset, size=ReportBody.size())


_SIGSTRUCT: Explain = {
    "vendor": "0 except for enclaves of Intel's",
    "date": lambda value: f"when it was signed, {value:08x} as YYYYMMDD",
    "exponent": "of the signer's RSA key",
    "misc_select": "MISCSELECT that the enclave starts with",
    "misc_mask": "bits of MISCSELECT that are enforced",
    "isv_family_id": "product family (KSS)",
    "enclave_hash": "MRENCLAVE that the processor must measure",
    "isv_ext_prod_id": "extended product id (KSS)",
    "isv_prod_id": "ISVPRODID, the signer's product number",
    "isv_svn": "ISVSVN, the signer's security version of that product",
}


def sigstruct_items(signed: SignedEnclave) -> tuple[Item, ...]:
    """Who signed an enclave file and what; the signature was checked, and it says nothing of who the signer is."""
    special: Special = {
        **dict.fromkeys(("header", "header2", "modulus", "signature", "q1", "q2"), lambda _, __: ()),
        "attributes": attributes_item,
        "attribute_mask": _attribute_mask_item,
    }
    fields = record_items(signed.sigstruct, _SIGSTRUCT, offset=signed.offset, special=special)
    return (Item("mr_signer", signed.mr_signer.hex(), _signer(signed.mr_signer)), *fields)


def _attribute_mask_item(mask: Attributes, offset: int) -> Item:
    return group(
        "attribute_mask",
        [
            Item("flags", f"{mask.flags:016x}", "bits of the flags that are enforced", offset, 8),
            Item("xfrm", f"{mask.xfrm:016x}", "bits of XFRM that are enforced", offset + 8, 8),
        ],
        offset=offset,
        size=Attributes.size(),
    )


def report_items(report: Report, offset: int = 0) -> tuple[Item, ...]:
    """A report: body, key id and MAC."""
    meanings = {
        "key_id": "which report key of the target made the MAC",
        "mac": "AES-CMAC; only the target enclave, on the same machine, can check it",
    }
    return record_items(
        report,
        meanings,
        offset=offset,
        special={"body": lambda body, at: report_body_group("body", body, at, "who the enclave is, and what it says")},
    )


def target_info_items(target: TargetInfo, offset: int = 0) -> tuple[Item, ...]:
    """A target info."""
    meanings = {
        "mr_enclave": "MRENCLAVE of the enclave that a report is made for",
        "config_svn": "its CONFIGSVN",
        "misc_select": "its MISCSELECT",
        "config_id": "its CONFIGID",
    }
    return record_items(target, meanings, offset=offset, special={"attributes": attributes_item})


def qe_report_info_items(info: QeReportInfo) -> tuple[Item, ...]:
    """A QE report info, asked or answered."""
    answered = any(bytes(info.qe_report))
    meaning = "the QE's report over nonce and quote" if answered else "empty: this is a request"
    return record_items(
        info,
        {"nonce": "chosen by the enclave that asks"},
        special={
            "app_enclave_target_info": lambda target, at: group(
                "app_enclave_target_info",
                target_info_items(target, at),
                "the enclave that asks",
                offset=at,
                size=TargetInfo.size(),
            ),
            "qe_report": lambda report, at: group(
                "qe_report", report_items(report, at), meaning, offset=at, size=Report.size()
            ),
        },
    )


def key_id_items(key_id: AttestationKeyId, offset: int = 0) -> tuple[Item, ...]:
    """An attestation key id: which quoting enclave, which algorithm."""
    base: Explain = {
        "mr_signer_length": "bytes of mr_signer in use",
        "mr_signer": lambda value: _signer(value[:32]),
        "prod_id": "ISVPRODID of the quoting enclave",
        "algorithm_id": lambda value: "ECDSA on P-256" if value == ALGORITHM_ECDSA_P256 else "not ECDSA on P-256",
    }
    return record_items(
        key_id,
        {"spid": "EPID only", "att_key_type": "EPID only"},
        offset=offset,
        special={
            "base": lambda value, at: group(
                "base",
                record_items(value, base, offset=at),
                "the part that is compared",
                offset=at,
                size=QlAttestationKeyId.size(),
            )
        },
    )


def key_id_list_items(ids: AttestationKeyIdList) -> tuple[Item, ...]:
    """A list of attestation key ids, after its 8-byte header."""
    size = AttestationKeyId.size()
    members = (group(f"{n}", key_id_items(key_id, 8 + n * size)) for n, key_id in enumerate(ids.ids))
    return (listing("ids", members, f"{len(ids.ids)} quoting enclaves"),)


def _td_attributes(value: int) -> str:
    known: Mapping[int, str] = {flag.value: flag.name or "" for flag in TdAttributeFlags}
    names = [known.get(1 << bit, f"bit{bit}") for bit in range(64) if value >> bit & 1]
    debug = "DEBUG ON: its memory is open to the host; " if value & TdAttributeFlags.DEBUG else ""
    return f"{debug}flags: {', '.join(names) or 'none'}"


_TD_BODY: Explain = {
    "tee_tcb_svn": lambda value: f"TDX module {value[1]}.{value[0]} (version, SVN), SEAM loader SVN {value[2]}",
    "mr_seam": "hash of the TDX module",
    "mr_signer_seam": "signer of the TDX module; zero means Intel",
    "seam_attributes": "zero for a production module",
    "td_attributes": _td_attributes,
    "xfam": "processor state that the TD may use",
    "mr_td": "MRTD, hash of the TD as it was built: which image",
    "mr_config_id": "configuration, chosen at launch",
    "mr_owner": "owner, chosen at launch",
    "mr_owner_config": "the owner's configuration",
    "rtmr0": "run-time measurement, by convention of the virtual firmware",
    "rtmr1": "run-time measurement, by convention of boot loader and kernel",
    "rtmr2": "run-time measurement, by convention of the operating system",
    "rtmr3": "run-time measurement, free",
    "report_data": "what the TD itself says: 64 free bytes",
    "tee_tcb_svn2": lambda value: f"TDX module that runs now: {value[1]}.{value[0]}",
    "mr_service_td": "hash of the service TDs bound to it; zero without any",
}


def td_body_items(body: TdReportBody, offset: int = 0) -> tuple[Item, ...]:
    """A TD report body of any version, its parts side by side."""
    return record_items(body, _TD_BODY, offset=offset, special={"base": td_body_items, "body": td_body_items})


# Quotes of every version, and Open Enclave's wrappings of them.


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
    return (Item("trailing", size, f"{content} after the quote, not read by verifiers", quote.size, size),)


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


# Certificates with evidence for their key (attested TLS).

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
        *_attested_extensions(parts),
    )


def _binding(data: bytes) -> Item:
    certificate = AttestedCertificate.parse(data)
    rule = binding_of(certificate)
    meaning = "stands in the report data" if rule else "the report data is no hash of this key or its claims"
    return Item("binding", rule or "none", f"{certificate.format}: {meaning}")


def _attested_extensions(parts: CertificateParts) -> Iterator[Item]:
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
            return oe_evidence_items(OeEvidence.parse(value))
        case CertificateFormat.OE_REPORT:
            content = unwrapped(value)
            if int.from_bytes(content[:4], "little") == REPORT_VERSION:
                return oe_report_items(OeReport.parse(content))
            return (quote_group("quote", content),)
        case _:
            return (quote_group("quote", value),)


def _ra_tls(found: RaTlsEvidence, parts: CertificateParts) -> tuple[Item, ...]:
    own = new_hash(found.hash_name, parts.public_key).digest() == found.key_hash
    meaning = f"{found.hash_name}, {'of this certificate' if own else 'NOT of this certificate'}'s key"
    claims = [("pubkey-hash", found.key_hash, meaning)]
    if found.nonce is not None:
        claims.append(("nonce", found.nonce, "chosen by the verifier, against replay"))
    claims += [(name, value, "") for name, value in found.further.items()]
    members = [group("", [Item("name", name), bytes_item("value", value, text)]) for name, value, text in claims]
    return quote_group("quote", found.quote), listing("claims", members, "their hash is in the report data")
