"""Certificates and revocation lists of Intel's PKI: found in PEM, read, and held to the algorithms of the profile."""

from __future__ import annotations

import re
from binascii import b2a_base64
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from confcom.errors import CertificateError, FormatError, MismatchError, SignatureError
from confcom.formats.der import (
    INTEGER,
    NULL,
    OID,
    TWO_ALGORITHMS,
    CertificateParts,
    DerError,
    RequestParts,
    content_of,
    elements,
    integer,
    oid,
    oid_text,
    read_extensions,
    read_signed,
)
from confcom.pki.der import (
    AUTHORITY_KEY_ID,
    ECDSA_WITH_SHA256,
    UNREADABLE,
    Certificate,
    CertificateFrame,
    authority_key_id,
    der_reason,
    name_text,
    read_certificate,
    read_name,
    read_time,
)
from confcom.pki.proof import Known, Memory, is_good

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


# Revocation lists, in the three encodings that Intel's services use (dcap.md §3.4).

MAX_CRL = 8 << 20
"""Bytes as received. Intel's take 0.3 to 4 kB; a list of 100,000 revoked platforms would take 4 MB of DER."""

_NUMBER_BITS = 160
"""RFC 5280 §5.2.3."""
# tbsCertList: version, algorithm, issuer, thisUpdate and perhaps nextUpdate, revokedCertificates, extensions, by tags.
_LIST = re.compile(rb"(?P<version>\x02?)\x30\x30(?P<times>[\x17\x18]{1,2})(?P<entries>\x30?)(?P<extensions>\xa0?)")
_VERSION_2 = bytes.fromhex("020101")
_CRL_NUMBER = oid("2.5.29.20")
_REQUIRED = {_CRL_NUMBER: "cRLNumber", AUTHORITY_KEY_ID: "authorityKeyIdentifier"}
# Such a list is not all that its CA revoked, whether it is marked critical or not: RFC 5280 §5.2.4, §5.2.5.
_PARTIAL = {oid("2.5.29.27"), oid("2.5.29.28")}  # deltaCRLIndicator, issuingDistributionPoint
_CRITICAL = bytes.fromhex("0101ff")
"""How an extension says that it is critical."""
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class Crl(msgspec.Struct, frozen=True):
    """A revocation list, in all its parts; `verify_signature` says whether its issuer made it.

    `issuer` is the DER of a name, `signature` the DER of an ECDSA signature, `signed_digest` the SHA-256 of what the
    issuer signed (tbsCertList). Serial numbers are looked up in the DER: a list may have 100,000. One without entries,
    as Intel's often are, needs no look-up: `cryptography` would take 40 µs for the first list of a process.
    """

    der: bytes
    issuer: bytes
    number: int
    this_update: datetime
    next_update: datetime
    algorithm: bytes
    signature: bytes
    signed_digest: bytes
    _entries: x509.CertificateRevocationList | None

    @classmethod
    def parse(cls, data: bytes, *, structure: str = "CRL") -> Crl:
        """Read a CRL in PEM, hexadecimal digits of DER, or DER; malformed bytes are a `FormatError`."""
        if len(data) > MAX_CRL:
            raise FormatError(f"{len(data)} bytes are over the limit {MAX_CRL}", structure=structure, field="")
        der = _crl_der(data, structure)
        try:
            outer = read_signed(der)
            fields = _LIST.fullmatch(outer.tags)
            if fields is None:
                raise DerError.at("tbsCertList")
            at = fields.end("version")
            members = outer.members[at:]
            if at and outer.members[0][2] != _VERSION_2:
                raise DerError("its version is not 2")
            if members[0][1] != outer.algorithm:
                raise DerError(TWO_ALGORITHMS)
            issuer, times = members[1][2], members[2 : fields.end("times") - at]
            if len(issuer) > MAX_CERTIFICATE:  # names are remembered, and it could be that of no certificate
                raise DerError("its issuer has a longer name than any certificate")
            this_update, *next_update = [read_time(tag, content) for tag, content, _ in times]
            extensions = read_extensions(members[-1][1]) if fields["extensions"] else {}
            _, key_id = extensions.get(AUTHORITY_KEY_ID, (False, b""))
            # Unlike Intel's lists, it has parts that are not read above: they must be readable.
            odd = extensions.keys() != _REQUIRED.keys() or authority_key_id(key_id) is None
            odd |= read_name(issuer)[1] or outer.algorithm != ECDSA_WITH_SHA256
            entries = x509.load_der_x509_crl(der) if odd or fields["entries"] else None
            if entries is not None and odd:
                _ = entries.extensions, entries.issuer
        except UNREADABLE as error:
            raise FormatError(f"not a revocation list: {der_reason(error)}", structure=structure, field="") from error
        if not next_update:
            raise FormatError("is missing", structure=structure, field="nextUpdate")
        return cls(
            der=der,
            issuer=issuer,
            number=_number(extensions, structure),
            this_update=this_update,
            next_update=next_update[0],
            algorithm=outer.algorithm,
            signature=outer.signature,
            signed_digest=sha256(outer.signed).digest(),
            _entries=entries,
        )

    def __bytes__(self) -> bytes:
        return self.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __reduce__(self) -> tuple[Any, ...]:
        return Crl.parse, (self.der,)

    @property
    def issuer_text(self) -> str:
        """The issuer as RFC 4514 writes it."""
        return name_text(self.issuer)

    def revoked(self, serial: int) -> bool:
        """Whether the certificate of that serial number is on the list."""
        entries = self._entries
        return entries is not None and entries.get_revoked_certificate_by_serial_number(serial) is not None

    def verify_signature(
        self, issuer_certificate: Certificate, *, step: str, what: str, known: Known | None = None
    ) -> None:
        """Check that the certificate's subject issued this list and its key signed it.

        A list of another issuer is a `MismatchError`, a signature that does not match a `SignatureError`, an entry with
        a critical extension a `FormatError`.
        """
        if self.issuer != issuer_certificate.subject:
            raise MismatchError(
                f"{what} was issued by another CA",
                step=step,
                expected=issuer_certificate.subject_text,
                found=self.issuer_text,
            )
        check_p256(issuer_certificate, step=step)
        good = is_good(issuer_certificate, self.signature, self.signed_digest, known)
        if self.algorithm != ECDSA_WITH_SHA256 or not good:
            raise SignatureError(
                f"signature of {what} does not match",
                step=step,
                expected="a signature by the key of its issuer",
                found=self.signature.hex(),
            )
        if self._entries is not None and _CRITICAL in self.der:
            _check_entries(self._entries, what)


def _check_entries(entries: x509.CertificateRevocationList, what: str) -> None:
    """Refuse a list with a critical extension in an entry: it may say nothing about any certificate (RFC 5280 §5.3)."""
    wrong = ""
    try:
        if any(extension.critical for entry in entries for extension in entry.extensions):
            wrong = "has an entry with a critical extension"
    except UNREADABLE as error:
        wrong = f"cannot be read: {der_reason(error)}"
    if wrong:
        raise FormatError(wrong, structure=what, field="revokedCertificates")


def _number(extensions: Mapping[bytes, tuple[bool, bytes]], structure: str) -> int:
    for identifier, (critical, _) in extensions.items():
        if identifier in _PARTIAL:
            raise FormatError("is a part of a list", structure=structure, field=oid_text(identifier))
        if critical and identifier not in _REQUIRED:
            raise FormatError("is critical and not known", structure=structure, field=oid_text(identifier))
    for identifier, name in _REQUIRED.items():
        if identifier not in extensions:
            raise FormatError("is missing", structure=structure, field=name)
    try:
        number = integer(content_of(extensions[_CRL_NUMBER][1], INTEGER, "cRLNumber"))
    except DerError as error:
        raise FormatError("is not an INTEGER", structure=structure, field="cRLNumber") from error
    if not 0 <= number < 1 << _NUMBER_BITS:
        raise FormatError("is negative, or longer than 20 bytes", structure=structure, field="cRLNumber")
    return number


def _crl_der(data: bytes, structure: str) -> bytes:
    # Buffers of Intel's libraries end with a NUL that is counted in their size.
    size = _size_of_element(data)
    if len(data) == size or (len(data) == size + 1 and data.endswith(b"\0")):
        return data[:size]
    if b"-----BEGIN X509 CRL-----" in data:
        return parse_crl(data, structure=structure)
    text = data.removesuffix(b"\0").translate(None, b" \t\r\n")
    if text and len(text) % 2 == 0 and _HEX_DIGITS.issuperset(text):
        return bytes.fromhex(text.decode())
    return data


def _size_of_element(data: bytes) -> int:
    """Bytes of the ASN.1 SEQUENCE that begins here, by its own length (X.690 §8.1.3); 0 if none does."""
    if len(data) < 2 or data[0] != 0x30:
        return 0
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")
