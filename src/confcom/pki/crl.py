"""Certificate revocation lists, in the three encodings that Intel's services use (dcap.md §3.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
from cryptography import x509

from confcom.errors import FormatError, MismatchError, SignatureError
from confcom.formats.der import (
    INTEGER,
    TWO_ALGORITHMS,
    DerError,
    content_of,
    integer,
    oid,
    oid_text,
    read_extensions,
    read_signed,
)
from confcom.pki.certificate import MAX_CERTIFICATE, check_p256, parse_crl
from confcom.pki.der import (
    AUTHORITY_KEY_ID,
    ECDSA_WITH_SHA256,
    UNREADABLE,
    Certificate,
    authority_key_id,
    der_reason,
    name_text,
    read_name,
    read_time,
)
from confcom.pki.ecdsa import Known, is_good

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
        der = _der(data, structure)
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


def _der(data: bytes, structure: str) -> bytes:
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
