"""One certificate of Intel's PKI: read it, and ask what every one of them must be (dcap.md §2)."""

from __future__ import annotations

import binascii
from codecs import BOM_UTF8
from collections.abc import Iterator

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


# --- PEM (RFC 7468): the DER of the blocks of one label, with or without text around them -----------------------------
#
# Tools write whole lines of text before and after the blocks (`openssl x509 -text`, "Bag Attributes"), blanks, other
# line ends, a byte order mark or final NULs. None of it has a meaning, so what is read is the DER alone, and keys of
# caches are made of the DER. A damaged marker is no text, and within a block white space is the only freedom.


MAX_CERTIFICATES = 8
"""Intel's chains have two or three."""

MAX_PEM = 32 * 1024
"""Bytes of a chain. Intel's take less than 4 kB, with the text of `openssl x509 -text` 16 kB; longer is hostile."""

_LINE_END = b"\r\n"
_BLANKS = b" \t" + _LINE_END


def parse_certificates(data: bytes, *, structure: str, limit: int = MAX_CERTIFICATES) -> tuple[bytes, ...]:
    """The DER of each CERTIFICATE block, in order; whether it is a certificate is not asked here.

    None at all, more than `limit`, and a NUL before the end are a `FormatError`.
    """
    if len(data) > MAX_PEM:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_PEM}", structure=structure, field="")
    certificates = tuple(_blocks(data, "CERTIFICATE", structure, limit))
    if not certificates:
        raise FormatError("no PEM certificate here", structure=structure, field="", offset=0)
    return certificates


def parse_crl(data: bytes, *, structure: str) -> bytes:
    """The DER of the one X509 CRL block; the caller bounds the length."""
    lists = tuple(_blocks(data, "X509 CRL", structure, 1))
    if not lists:
        raise FormatError("no PEM revocation list here", structure=structure, field="", offset=0)
    return lists[0]


def _blocks(data: bytes, label: str, structure: str, limit: int) -> Iterator[bytes]:
    begin, end = b"-----BEGIN %s-----" % label.encode(), b"-----END %s-----" % label.encode()
    text = data.removeprefix(BOM_UTF8).rstrip(b"\0")
    if (encoded := text.find(b"-----BEGIN%20")) >= 0:
        raise FormatError("is percent-encoded: decode it first", structure=structure, field="", offset=encoded)
    if (nul := text.find(b"\0")) >= 0:
        # Readers that know strings by their NUL end here, others read on: they would see different chains.
        raise FormatError("a NUL before the end of the text", structure=structure, field="", offset=nul)
    count = offset = 0
    while True:
        start = text.find(begin, offset)
        around = text[offset : len(text) if start < 0 else start].strip(b" \t")
        # Text is whole lines, and the remains of a marker are no text: its block would be left out without a word.
        if around.strip(_LINE_END) and (
            around[-1] not in _LINE_END
            or (count and around[0] not in _LINE_END)
            or any(remains in around for remains in (begin[:10], end[:8], end[9:]))
        ):
            message = f"neither a {label} block nor a line of text"
            raise FormatError(message, structure=structure, field="", offset=offset)
        if start < 0:
            return
        if count == limit:
            raise FormatError(f"more than {limit} {label} blocks", structure=structure, field="", offset=start)
        inner = start + len(begin)
        stop = text.find(end, inner)
        if stop < 0:
            raise FormatError(f"a {label} block has no end", structure=structure, field="", offset=start)
        yield _der(text[inner:stop], structure, inner)
        count, offset = count + 1, stop + len(end)


def _der(block: bytes, structure: str, offset: int) -> bytes:
    text = block.translate(None, _BLANKS)
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(f"not base64: {error}", structure=structure, field="", offset=offset) from error
    # Stray bits in the last digit would be a second spelling.
    if not der or binascii.b2a_base64(der, newline=False) != text:
        raise FormatError("not base64 of whole bytes", structure=structure, field="", offset=offset)
    return der
