"""Certificate revocation lists, in the three encodings that Intel's services use (dcap.md §3.4)."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Any, Self

from cryptography import x509
from cryptography.x509.oid import SignatureAlgorithmOID

from confcom.errors import FormatError, MismatchError, SignatureError
from confcom.formats.pck_extension import der_reason
from confcom.pki.certificate import UNREADABLE, check_signature_encoding, p256_key, parse_crl

MAX_CRL = 8 << 20
"""Bytes as received. Intel's take 0.3 to 4 kB; a list of 100,000 revoked platforms would take 4 MB of DER."""

_REQUIRED: dict[type[x509.ExtensionType], str] = {
    x509.CRLNumber: "cRLNumber",
    x509.AuthorityKeyIdentifier: "authorityKeyIdentifier",
}
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list by its DER; `verify_signature` says whether its issuer made it."""

    der: bytes
    issuer: x509.Name = field(init=False, repr=False, compare=False)
    number: int = field(init=False, compare=False)
    this_update: datetime = field(init=False, compare=False)
    next_update: datetime = field(init=False, compare=False)
    _list: x509.CertificateRevocationList = field(init=False, repr=False, compare=False)

    structure: InitVar[str] = "CRL"

    def __post_init__(self, structure: str) -> None:
        try:
            found = x509.load_der_x509_crl(self.der)
            extensions, next_update = found.extensions, found.next_update_utc
            values = {"issuer": found.issuer, "this_update": found.last_update_utc, "_list": found}
        except UNREADABLE as error:
            raise FormatError(f"not a revocation list: {der_reason(error)}", structure=structure, field="") from error
        check_signature_encoding(self.der, found.signature, structure=structure, field="signature")
        if next_update is None:
            raise FormatError("is missing", structure=structure, field="nextUpdate")
        values |= {"next_update": next_update, "number": _number(extensions, structure)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, data: bytes, *, structure: str = "CRL") -> Self:
        """Read a CRL in PEM, hexadecimal digits of DER, or DER; malformed bytes are a `FormatError`."""
        if len(data) > MAX_CRL:
            raise FormatError(f"{len(data)} bytes are over the limit {MAX_CRL}", structure=structure, field="")
        return cls(_der(data, structure), structure=structure)

    def __bytes__(self) -> bytes:
        return self.der

    def __reduce__(self) -> tuple[Any, ...]:
        return Crl, (self.der,)

    @property
    def signed_bytes(self) -> bytes:
        """The part that the issuer signed (tbsCertList)."""
        return self._list.tbs_certlist_bytes

    def revoked(self, serial: int) -> bool:
        """Whether the certificate of that serial number is on the list."""
        return self._list.get_revoked_certificate_by_serial_number(serial) is not None

    def verify_signature(self, issuer_certificate: x509.Certificate, *, step: str, what: str) -> None:
        """Check that the certificate's subject issued this list and its key signed it.

        A list of another issuer is a `MismatchError`, a signature that does not match a `SignatureError`.
        """
        if self.issuer != issuer_certificate.subject:
            raise MismatchError(
                f"{what} was issued by another CA",
                step=step,
                expected=issuer_certificate.subject.rfc4514_string(),
                found=self.issuer.rfc4514_string(),
            )
        key = p256_key(issuer_certificate, step=step)
        if self._list.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256 or not (
            self._list.is_signature_valid(key)
        ):
            raise SignatureError(
                f"signature of {what} does not match",
                step=step,
                expected="a signature by the key of its issuer",
                found=self._list.signature.hex(),
            )


def _number(extensions: x509.Extensions, structure: str) -> int:
    found = {type(extension.value) for extension in extensions}
    for extension in extensions:
        # Such a list is not all that its CA revoked, whether it is marked critical or not: RFC 5280 §5.2.4, §5.2.5.
        if isinstance(extension.value, (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint)):
            raise FormatError("is a part of a list", structure=structure, field=extension.oid.dotted_string)
        if extension.critical and type(extension.value) not in _REQUIRED:
            raise FormatError("is critical and not known", structure=structure, field=extension.oid.dotted_string)
    for kind, name in _REQUIRED.items():
        if kind not in found:
            raise FormatError("is missing", structure=structure, field=name)
    return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


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
