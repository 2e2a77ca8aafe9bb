"""Certificates of Intel's PKI: found in PEM, read once per process, and held to the algorithms of the profile."""

from __future__ import annotations

import re
from binascii import b2a_base64
from codecs import BOM_UTF8
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from confcom.errors import CertificateError, FormatError, SignatureError
from confcom.formats.der import NULL, OID, CertificateParts, DerError, RequestParts, elements, oid, oid_text
from confcom.pki.der import ECDSA_WITH_SHA256, UNREADABLE, Certificate, CertificateFrame, der_reason, read_certificate
from confcom.pki.memory import Memory

MAX_CERTIFICATE = 16 * 1024
"""Bytes of DER. Intel's take 0.7 to 1.3 kB."""

MAX_CERTIFICATES = 8
"""Intel's chains have two or three."""

MAX_PEM = 32 * 1024
"""Bytes of a chain. Intel's take less than 4 kB, with the text of `openssl x509 -text` 16 kB; longer is hostile."""


class PemChain(msgspec.Struct, frozen=True):
    """Certificates in the order of their PEM text.

    `exact` has their count (1 byte), and of each the digest of what is signed and the signature after its length (2
    bytes). `statement` is the same whatever the order, the signatures, and whether a root came along: the count of the
    others (1 byte) and their digests. No such value begins another one.
    """

    certificates: tuple[Certificate, ...]
    exact: bytes
    statement: bytes

    @classmethod
    def of(cls, certificates: tuple[Certificate, ...]) -> PemChain:
        """The chain with what identifies it."""
        exact, signed = len(certificates).to_bytes(1), []
        for one in certificates:
            exact += one.signed_digest + len(one.signature).to_bytes(2) + one.signature
            if not one.self_issued:
                signed.append(one.signed_digest)
        return cls(certificates, exact, b"".join([len(signed).to_bytes(1), *sorted(signed)]))


# By DER. Reading is no decision on trust. Only certificates that verified are kept: strangers cannot fill it.
_CERTIFICATES: Memory[Certificate] = Memory(256)
# PCK certificates that verified, by their first bytes: the sizes, of which certificates of one issuer have a few.
_MODELS: Memory[Certificate] = Memory(64)
_SIZES = 8
_frame_of = lru_cache(64)(CertificateFrame.of)


def load_certificate(der: bytes, *, structure: str, field: str) -> Certificate:
    """Read one certificate, or find it among those that were read before; a `FormatError` if it is none."""
    if len(der) > MAX_CERTIFICATE:
        raise FormatError(f"{len(der)} bytes are over the limit {MAX_CERTIFICATE}", structure=structure, field=field)
    try:
        model = _MODELS.get(der[:_SIZES])
        frame = model and _frame_of(model)
        return (frame and frame.read(der)) or _CERTIFICATES.get(der) or read_certificate(der)
    except UNREADABLE as error:
        raise FormatError(f"not an X.509 certificate: {der_reason(error)}", structure=structure, field=field) from error


def load_chain(data: bytes, *, structure: str) -> PemChain:
    """The certificates of PEM text, as `parse_certificates` finds them."""
    first, end, others = data.partition(_END)
    if end and len(data) <= MAX_PEM:
        try:
            return PemChain.of((_certificate(first), *_issuers(others)))
        except ValueError:
            pass  # read as a whole, the text says what is wrong, and where
    return PemChain.of(load_certificates(parse_certificates(data, structure=structure), structure))


@lru_cache(16)
def _certificate(block: bytes) -> Certificate:
    """The certificate of a block up to its end mark. Those of one verification stand in several of its chains."""
    if not block.startswith(_BEGIN):
        raise ValueError
    return load_certificate(_decode(block.removeprefix(_BEGIN)), structure="", field="")


@lru_cache(16)
def _issuers(text: bytes) -> tuple[Certificate, ...]:
    """The certificates after the first one, which the chains of many platforms have in common."""
    *blocks, rest = text.rstrip(b"\0").split(_END)
    if len(blocks) >= MAX_CERTIFICATES or rest.strip(b"\n"):
        raise ValueError
    return tuple([_certificate(block.lstrip(b"\n")) for block in blocks])


def load_certificates(ders: Iterable[bytes], structure: str) -> tuple[Certificate, ...]:
    """Read each of some certificates (DER)."""
    return tuple(
        [
            load_certificate(der, structure=structure, field=f"certificate {number}")
            for number, der in enumerate(ders, start=1)
        ]
    )


def remember(verified: Iterable[Certificate]) -> None:
    """Keep certificates that verified, so that they are not read again; of PCK certificates one for each model."""
    for certificate in verified:
        if certificate.extensions.sgx is None:
            if certificate.der not in _CERTIFICATES:
                _CERTIFICATES.add(certificate.der, certificate)
        else:
            model = _MODELS.get(certificate.der[:_SIZES])
            if model is None or model.issuer != certificate.issuer:
                _MODELS.add(certificate.der[:_SIZES], certificate)


def check_p256(certificate: Certificate, *, step: str = "") -> None:
    """Refuse what Intel's PKI does not know: keys that are not on P-256, signatures not ecdsa-with-SHA256."""
    what = certificate.common_name
    if not certificate.point:
        raise CertificateError(
            f"the key of certificate {what!r} is not on P-256", step=step, expected="P-256", found="another kind of key"
        )
    if certificate.algorithm != ECDSA_WITH_SHA256:
        raise CertificateError(
            f"certificate {what!r} is signed with another algorithm",
            step=step,
            expected="ecdsa-with-SHA256",
            found=certificate.algorithm.hex(),
        )


def check_own_signature(parts: CertificateParts | RequestParts, *, step: str) -> None:
    """Check that a certificate of any PKI, or a request for one, is signed with its own key.

    ECDSA, RSA (PKCS #1 v1.5) and Ed25519; parameters of the algorithm may be NULL, as mbedTLS writes them for ECDSA.
    """
    # Here, because it takes a twelfth of all that verifying quotes imports.
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    what = "certificate" if isinstance(parts, CertificateParts) else "request"
    if isinstance(parts, CertificateParts) and parts.issuer != parts.subject:
        raise CertificateError("the certificate is not self-signed: it names another issuer", step=step)
    try:
        key = load_der_public_key(parts.public_key)
        identifier = _algorithm(parts.algorithm)
        digest = _SIGNATURES.get(identifier)
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None and identifier in _ECDSA:
            key.verify(parts.signature, parts.signed, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None and identifier not in _ECDSA:
            key.verify(parts.signature, parts.signed, padding.PKCS1v15(), digest)
        elif isinstance(key, ed25519.Ed25519PublicKey) and identifier == _ED25519:
            key.verify(parts.signature, parts.signed)
        else:
            raise CertificateError(
                f"the {what} is signed with an algorithm that is not known, or not of its key",
                step=step,
                expected=f"ECDSA, RSA (PKCS #1 v1.5) or Ed25519 by the {what}'s own key",
                found=f"{oid_text(identifier)} and {type(key).__name__}",
            )
    except InvalidSignature as error:
        raise SignatureError(
            f"the {what} did not sign itself: its key or its content was changed",
            step=step,
            expected=f"a signature by the {what}'s own key",
            found=parts.signature.hex(),
        ) from error
    except UNREADABLE as error:
        message = f"the key or the algorithm of the {what} cannot be read: {der_reason(error)}"
        raise CertificateError(
            message,
            step=step,
            expected="ECDSA, RSA (PKCS #1 v1.5) or Ed25519, without parameters or with NULL",
            found=f"key {parts.public_key.hex()}, algorithm {parts.algorithm.hex() or 'empty'}",
        ) from error


def _algorithm(content: bytes) -> bytes:
    """The OID (content) of an AlgorithmIdentifier that has no parameters, or NULL."""
    (tag, identifier, _), *parameters = elements(content) or [(0, b"", b"")]
    if tag != OID or [whole for _, _, whole in parameters] not in ([], [NULL]):
        raise DerError("the signature algorithm is no object identifier, or has parameters")
    return identifier


_ECDSA = {
    oid(f"1.2.840.10045.4.3.{number}"): digest for number, digest in ((2, SHA256()), (3, SHA384()), (4, SHA512()))
}
_RSA = {
    oid(f"1.2.840.113549.1.1.{number}"): digest for number, digest in ((11, SHA256()), (12, SHA384()), (13, SHA512()))
}
_SIGNATURES: dict[bytes, SHA256 | SHA384 | SHA512] = _ECDSA | _RSA
_ED25519 = oid("1.3.101.112")


# PEM (RFC 7468): the DER of the blocks of one label, with or without text around them.
#
# Tools write whole lines of text before and after the blocks (`openssl x509 -text`, "Bag Attributes"), blanks, other
# line ends, a byte order mark or final NULs. None of it has a meaning, so what is read is the DER alone, and keys of
# caches are made of the DER. A damaged marker is no text, and within a block white space is the only freedom.


_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_LINE_END = b"\r\n"
_BLANKS = b" \t" + _LINE_END
_NO_DIGIT = re.compile(rb"[^A-Za-z0-9+/= \t\r\n]")


def parse_certificates(
    data: bytes, *, structure: str, limit: int = MAX_CERTIFICATES, size: int = MAX_PEM
) -> tuple[bytes, ...]:
    """The DER of each CERTIFICATE block, in order; whether it is a certificate is not asked here.

    None at all, more than `limit`, more than `size` bytes, and a NUL before the end are a `FormatError`.
    """
    if len(data) > size:
        raise FormatError(f"{len(data)} bytes are over the limit {size}", structure=structure, field="")
    return tuple([_der(block, structure, offset) for offset, block in _blocks(data, "CERTIFICATE", structure, limit)])


def parse_crl(data: bytes, *, structure: str) -> bytes:
    """The DER of the one X509 CRL block; the caller bounds the length."""
    ((offset, block),) = _blocks(data, "X509 CRL", structure, 1)
    return _der(block, structure, offset)


def _blocks(data: bytes, label: str, structure: str, limit: int) -> list[tuple[int, bytes]]:
    """The base64 of each block of the label, with its offset; at least one, at most `limit`."""
    begin, end = b"-----BEGIN %s-----" % label.encode(), b"-----END %s-----" % label.encode()
    text = data.removeprefix(BOM_UTF8).rstrip(b"\0")
    if (encoded := text.find(b"-----BEGIN%20")) >= 0:
        raise FormatError("is percent-encoded: decode it first", structure=structure, field="", offset=encoded)
    if (nul := text.find(b"\0")) >= 0:
        # Readers that know strings by their NUL end here, others read on: they would see different chains.
        raise FormatError("a NUL before the end of the text", structure=structure, field="", offset=nul)
    found: list[tuple[int, bytes]] = []
    offset = 0
    while True:
        start = text.find(begin, offset)
        around = text[offset : len(text) if start < 0 else start].strip(b" \t")
        # Text is whole lines, and the remains of a marker are no text: its block would be left out without a word.
        if around.strip(_LINE_END) and (
            around[-1] not in _LINE_END
            or (found and around[0] not in _LINE_END)
            or any(remains in around for remains in (begin[:10], end[:8], end[9:]))
        ):
            message = f"neither a {label} block nor a line of text"
            raise FormatError(message, structure=structure, field="", offset=offset)
        if start < 0:
            break
        if len(found) == limit:
            raise FormatError(f"more than {limit} {label} blocks", structure=structure, field="", offset=start)
        inner = start + len(begin)
        stop = text.find(end, inner)
        if stop < 0:
            raise FormatError(f"a {label} block has no end", structure=structure, field="", offset=start)
        found.append((inner, text[inner:stop]))
        offset = stop + len(end)
    if not found:
        what = "revocation list" if label == "X509 CRL" else "certificate"
        raise FormatError(f"no PEM {what} here", structure=structure, field="", offset=0)
    return found


def _der(block: bytes, structure: str, offset: int) -> bytes:
    try:
        return _decode(block)
    except ValueError as error:
        message, wrong = str(error), _NO_DIGIT.search(block)
        if wrong:
            message = f"holds characters that base64 does not have, first {wrong[0].decode('latin-1')!r}"
            offset += wrong.start()
        raise FormatError(message, structure=structure, field="", offset=offset) from error


def _decode(block: bytes) -> bytes:
    text = block.translate(None, _BLANKS)
    try:
        # msgspec's decoder takes exactly the padded standard form, in a quarter of the time of binascii's.
        der = msgspec.convert(text.decode("latin-1"), bytes)
    except msgspec.ValidationError:
        der = b""
    # Stray bits in the last digit would be a second spelling.
    if not der or b2a_base64(der[(len(der) - 1) // 3 * 3 :], newline=False) != text[-4:]:
        raise ValueError("not base64 of whole bytes")
    return der
