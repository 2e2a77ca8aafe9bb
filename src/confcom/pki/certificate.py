"""One certificate of Intel's PKI: read it, and ask what every one of them must be (dcap.md §2)."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from confcom.errors import CertificateError, FormatError
from confcom.formats.pck_extension import der_reason

MAX_CERTIFICATE = 16 * 1024
"""Bytes of DER. Intel's take 0.7 to 1.3 kB."""

# What pyca raises for DER that is no certificate, or one with parts that it does not read. It warns of what is against
# the rules (a name too long, a negative number); where a process makes warnings errors, they arrive as exceptions.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)


def load_certificate(der: bytes, *, structure: str, field: str) -> x509.Certificate:
    """Read one certificate so that none of its parts can fail later; a `FormatError` otherwise."""
    if len(der) > MAX_CERTIFICATE:
        raise FormatError(f"{len(der)} bytes are over the limit {MAX_CERTIFICATE}", structure=structure, field=field)
    try:
        certificate = x509.load_der_x509_certificate(der)
        # pyca reads these when they are asked for.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.serial_number
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key()
    except UNREADABLE as error:
        raise FormatError(f"not an X.509 certificate: {der_reason(error)}", structure=structure, field=field) from error
    check_signature_encoding(der, certificate.signature, structure=structure, field=field)
    return certificate


def check_signature_encoding(der: bytes, signature: bytes, *, structure: str, field: str) -> None:
    """Refuse a signature that is not whole bytes: a count of unused bits is a byte that nobody signed.

    Certificates and CRLs alike end with a BIT STRING: tag 3, length, number of unused bits, signature (RFC 5280 §4.1).
    """
    if not der.endswith(bytes((3, len(signature) + 1 & 0xFF, 0)) + signature):
        raise FormatError("the signature is not whole bytes", structure=structure, field=field)


def common_name(certificate: x509.Certificate) -> str:
    """The one common name of the subject, empty when it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def p256_key(certificate: x509.Certificate, *, step: str = "") -> ec.EllipticCurvePublicKey:
    """The certificate's key; Intel's PKI knows P-256 and ecdsa-with-SHA256 alone."""
    key = certificate.public_key()
    what = common_name(certificate)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(
            f"the key of certificate {what!r} is not on P-256", step=step, expected="P-256", found=type(key).__name__
        )
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise CertificateError(
            f"certificate {what!r} is signed with another algorithm",
            step=step,
            expected="ecdsa-with-SHA256",
            found=certificate.signature_algorithm_oid.dotted_string,
        )
    return key


def uncompressed_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as 04 ‖ x ‖ y, 65 bytes: how roots are known, whatever certificate carries them."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
