"""Explains certificates of Intel's PKI with their SGX extension, chains of them, and revocation lists."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from hashlib import sha256
from itertools import islice

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from confcom.appraisal.inspection.items import Item, attempt, bytes_item, group, listing, time_item, words
from confcom.errors import FormatError
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension, SgxType
from confcom.pki.certificate import MAX_CERTIFICATE, Crl
from confcom.pki.chain import INTEL_ROOT_PUBLIC_KEY
from confcom.pki.der import UNREADABLE, der_reason

MAX_SHOWN_CERTIFICATES = 16
MAX_SHOWN_REVOCATIONS = 200

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_ROLES = (
    ("SGX PCK Certificate", "certifies the key (PCK) of one platform at one TCB"),
    ("SGX PCK Processor CA", "issues PCK certificates of single-package machines"),
    ("SGX PCK Platform CA", "issues PCK certificates of registered machines"),
    ("SGX TCB Signing", "signs TCB infos and enclave identities"),
    ("SGX Root CA", "the root: everything stands on its key"),
)
_SGX_TYPES = {
    SgxType.STANDARD: "standard",
    SgxType.SCALABLE: "scalable (memory encrypted, no integrity tree)",
    SgxType.SCALABLE_WITH_INTEGRITY: "scalable with integrity",
}

_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
           "key_cert_sign", "crl_sign")  # fmt: skip


def certificates_of_pem(data: bytes) -> list[bytes]:
    """The DER of each CERTIFICATE block, whatever stands around the blocks; verification is stricter."""
    found: list[bytes] = []
    for match in islice(_BLOCK.finditer(data), MAX_SHOWN_CERTIFICATES + 1):
        try:
            found.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except binascii.Error as error:
            raise FormatError(f"not base64: {error}", structure="PEM", field="", offset=match.start()) from error
    if not found:
        raise FormatError("no whole CERTIFICATE block", structure="PEM", field="")
    if len(found) > MAX_SHOWN_CERTIFICATES:
        raise FormatError(f"more than {MAX_SHOWN_CERTIFICATES} certificates", structure="PEM", field="")
    return found


def certificate_items(der: bytes, field: str = "") -> tuple[Item, ...]:
    """A certificate of any PKI: subject, issuer, validity, key, and what Intel's extension says."""
    if len(der) > MAX_CERTIFICATE:
        message = f"{len(der)} bytes are over the limit {MAX_CERTIFICATE}"
        raise FormatError(message, structure="certificate", field=field)
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library reads these when they are asked for.
        subject, _ = certificate.subject.rfc4514_string(), (certificate.issuer, certificate.public_key())
        _ = certificate.extensions
    except UNREADABLE as error:
        message = f"not an X.509 certificate: {der_reason(error)}"
        raise FormatError(message, structure="certificate", field=field) from error
    role = next((text for name, text in _ROLES if name in subject), "")
    issued = "itself: a root" if certificate.issuer == certificate.subject else ""
    return (
        Item("subject", subject, role),
        Item("issuer", certificate.issuer.rfc4514_string(), issued),
        Item("serial", f"{certificate.serial_number:x}"),
        time_item("not_before", certificate.not_valid_before_utc),
        time_item("not_after", certificate.not_valid_after_utc),
        _public_key(certificate),
        Item("signature_algorithm", certificate.signature_algorithm_oid.dotted_string, _algorithm(certificate)),
        Item("sha256", sha256(der).hexdigest(), f"of the certificate, {len(der)} bytes"),
        *_extensions(certificate),
    )


def chain_item(name: str, ders: Iterable[bytes]) -> Item:
    """Certificates one after the other; one that cannot be read does not hide the others."""
    members = (
        attempt(f"{number}", lambda der=der, number=number: _member(der, number))  # type: ignore[misc]
        for number, der in enumerate(ders, start=1)
    )
    return listing(name, members)


def _member(der: bytes, number: int) -> Item:
    items = certificate_items(der, f"certificate {number}")
    return group(f"{number}", items, str(items[0].value))


def _algorithm(certificate: x509.Certificate) -> str:
    known = certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    return "ecdsa-with-SHA256" if known else "not ecdsa-with-SHA256: not of Intel's PKI"


def _public_key(certificate: x509.Certificate) -> Item:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        intel = "; the key of Intel's SGX root" if point == INTEL_ROOT_PUBLIC_KEY else ""
        return bytes_item("public_key", point, f"{key.curve.name}, uncompressed point{intel}")
    return Item("public_key", type(key).__name__.removeprefix("_"), "not an elliptic curve: not of Intel's PKI")


def _extensions(certificate: x509.Certificate) -> Iterable[Item]:
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=ca, path_length=length):
                yield Item("is_ca", ca, "" if length is None else f"with at most {length} further CAs below it")
            case x509.KeyUsage() as usage:
                yield words("key_usage", [name for name in _USAGES if getattr(usage, name)])
            case x509.SubjectKeyIdentifier(digest=digest):
                yield bytes_item("subject_key_id", digest)
            case x509.AuthorityKeyIdentifier(key_identifier=identifier) if identifier:
                yield bytes_item("authority_key_id", identifier)
            case x509.CRLDistributionPoints() as points:
                uris = [str(name.value) for point in points for name in point.full_name or ()]
                yield words("crl_distribution_points", uris, "where its revocation list is")
            case x509.UnrecognizedExtension(oid=oid, value=value) if oid.dotted_string == PCK_EXTENSION_OID:
                yield attempt("sgx_extension", lambda value=value: _sgx_extension(value))  # type: ignore[misc]
            case _:
                yield Item(extension.oid.dotted_string, "present", "an extension that Intel's PKI does not use")


def _sgx_extension(der: bytes) -> Item:
    found = PckExtension.parse(der)
    items = [
        bytes_item("fmspc", found.fmspc, "family, model, stepping, platform, custom SKU: which TCB info applies"),
        bytes_item("pce_id", found.pce_id, "PCE-ID"),
        bytes_item("ppid", found.ppid, "PPID, names the processor package"),
        Item("pce_svn", found.tcb.pce_svn, "PCESVN"),
        words("sgx_components", found.tcb.sgx_components, "SVNs that TCB levels are matched with"),
        bytes_item("cpu_svn", found.tcb.cpu_svn, "CPUSVN"),
        Item("sgx_type", int(found.sgx_type), _SGX_TYPES[found.sgx_type]),
    ]
    if found.platform_instance_id is not None:
        items.append(bytes_item("platform_instance_id", found.platform_instance_id, "names the registered platform"))
    if found.configuration is not None:
        configuration = found.configuration
        items += [
            Item("dynamic_platform", configuration.dynamic_platform, "whether packages can be added"),
            Item("cached_keys", configuration.cached_keys, "whether Intel keeps the platform's root keys"),
            Item("smt_enabled", configuration.smt_enabled, "whether hyper-threading is on"),
        ]
    return group("sgx_extension", items, "Intel's SGX extension: which platform, at which TCB")


def crl_items(data: bytes) -> tuple[Item, ...]:
    """A revocation list: issuer, dates and entries."""
    crl = Crl.parse(data)
    found = x509.load_der_x509_crl(bytes(crl))
    shown = [
        group("", [Item("serial", f"{entry.serial_number:x}"), time_item("date", entry.revocation_date_utc)])
        for entry in islice(found, MAX_SHOWN_REVOCATIONS)
    ]
    rest = f", the first {MAX_SHOWN_REVOCATIONS} of them here" if len(found) > MAX_SHOWN_REVOCATIONS else ""
    return (
        Item("issuer", crl.issuer_text),
        Item("number", str(crl.number), "counts up with every issue"),
        time_item("this_update", crl.this_update),
        time_item("next_update", crl.next_update, "to be replaced by then"),
        *(bytes_item("authority_key_id", identifier) for identifier in _authority_key_id(found)),
        listing("revoked", shown, f"{len(found)} certificates{rest}"),
    )


def _authority_key_id(found: x509.CertificateRevocationList) -> Iterable[bytes]:
    for extension in found.extensions:
        if extension.oid == ExtensionOID.AUTHORITY_KEY_IDENTIFIER:
            identifier = extension.value.key_identifier
            if identifier:
                yield identifier
