"""Certificate revocation lists, in the three encodings that Intel's services use (dcap.md §3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from confcom.errors import FormatError, MismatchError, SignatureError
from confcom.formats.der import INTEGER, DerError, content_of, integer, oid, oid_text
from confcom.pki.certificate import check_p256, parse_crl
from confcom.pki.der import (
    AUTHORITY_KEY_ID,
    CRL_NUMBER,
    ECDSA_WITH_SHA256,
    UNREADABLE,
    Certificate,
    RevocationList,
    der_reason,
    name_text,
    read_revocation_list,
)
from confcom.pki.ecdsa import Known, is_good

MAX_CRL = 8 << 20
"""Bytes as received. Intel's take 0.3 to 4 kB; a list of 100,000 revoked platforms would take 4 MB of DER."""

_NUMBER_BITS = 160
"""RFC 5280 §5.2.3."""
_REQUIRED = {CRL_NUMBER: "cRLNumber", AUTHORITY_KEY_ID: "authorityKeyIdentifier"}
# Such a list is not all that its CA revoked, whether it is marked critical or not: RFC 5280 §5.2.4, §5.2.5.
_PARTIAL = {oid("2.5.29.27"), oid("2.5.29.28")}  # deltaCRLIndicator, issuingDistributionPoint
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list by its DER; `verify_signature` says whether its issuer made it. `issuer` is the DER of a name.

    `signed_digest` is the SHA-256 of the part that the issuer signed (tbsCertList).
    """

    der: bytes
    issuer: bytes = field(init=False, repr=False, compare=False)
    number: int = field(init=False, compare=False)
    this_update: datetime = field(init=False, compare=False)
    next_update: datetime = field(init=False, compare=False)
    signed_digest: bytes = field(init=False, repr=False, compare=False)
    _list: RevocationList = field(init=False, repr=False, compare=False)

    structure: InitVar[str] = "CRL"

    def __post_init__(self, structure: str) -> None:
        try:
            found = read_revocation_list(self.der)
        except UNREADABLE as error:
            raise FormatError(f"not a revocation list: {der_reason(error)}", structure=structure, field="") from error
        if found.next_update is None:
            raise FormatError("is missing", structure=structure, field="nextUpdate")
        values = {
            "issuer": found.issuer,
            "number": _number(found.extensions, structure),
            "this_update": found.this_update,
            "next_update": found.next_update,
            "signed_digest": sha256(found.signed).digest(),
            "_list": found,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, data: bytes, *, structure: str = "CRL") -> Crl:
        """Read a CRL in PEM, hexadecimal digits of DER, or DER; malformed bytes are a `FormatError`."""
        if len(data) > MAX_CRL:
            raise FormatError(f"{len(data)} bytes are over the limit {MAX_CRL}", structure=structure, field="")
        return cls(_der(data, structure), structure=structure)

    def __bytes__(self) -> bytes:
        return self.der

    def __reduce__(self) -> tuple[Any, ...]:
        return Crl, (self.der,)

    @property
    def signature(self) -> bytes:
        """The signature, in DER."""
        return self._list.signature

    @property
    def issuer_text(self) -> str:
        """The issuer as RFC 4514 writes it."""
        return name_text(self.issuer)

    def revoked(self, serial: int) -> bool:
        """Whether the certificate of that serial number is on the list."""
        return self._list.entries.get_revoked_certificate_by_serial_number(serial) is not None

    def verify_signature(
        self, issuer_certificate: Certificate, *, step: str, what: str, known: Known | None = None
    ) -> None:
        """Check that the certificate's subject issued this list and its key signed it.

        A list of another issuer is a `MismatchError`, a signature that does not match a `SignatureError`.
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
        if self._list.algorithm != ECDSA_WITH_SHA256 or not good:
            raise SignatureError(
                f"signature of {what} does not match",
                step=step,
                expected="a signature by the key of its issuer",
                found=self.signature.hex(),
            )


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
        number = integer(content_of(extensions[CRL_NUMBER][1], INTEGER, "cRLNumber"))
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
