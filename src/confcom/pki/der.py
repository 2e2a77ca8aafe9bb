"""DER of certificates and revocation lists (RFC 5280), for the fixed profile of Intel's PKI (dcap.md §2).

One reader for both: it decodes what every caller asks for and keeps names as slices of the DER, which are compared byte
by byte. Nothing here is verified. What the profile does not use (other kinds of names, other extensions) is read by
`cryptography` as well, so that no part of a certificate is unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtensionOID, NameOID

from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension, wrapped

# What `cryptography` raises for DER that it does not read. It warns of what is against the rules (a negative number);
# where a process makes warnings errors, they arrive as exceptions.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)

ECDSA_WITH_SHA256 = bytes.fromhex("06082a8648ce3d040302")
"""Content of the AlgorithmIdentifier of every signature of the profile, 10 bytes: an OID, no parameters."""
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""SubjectPublicKeyInfo of a key on P-256, up to x‖y: 27 bytes."""
_SPKI_SIZE = len(_P256) + 64
_SEQUENCE = b"\x30"
_FEW = 32
"""Names, and values of extensions, that are read once: a PKI has a dozen of each."""
_MAX_SERIAL_BITS = 160
_FIRST_GENERALIZED_YEAR = 2050
_VERSION_3 = 2

_SGX_EXTENSION = ObjectIdentifier(PCK_EXTENSION_OID)
# Every certificate of the profile has these, and two of them critical; they are no web certificates.
_NEEDED = {
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: ("authority key identifier", False),
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: ("subject key identifier", False),
    ExtensionOID.CRL_DISTRIBUTION_POINTS: ("CRL distribution points", False),
    ExtensionOID.KEY_USAGE: ("key usage", True),
    ExtensionOID.BASIC_CONSTRAINTS: ("basic constraints", True),
}
_PROFILE = {*_NEEDED, _SGX_EXTENSION}
_SHORT_NAMES = {f"2.5.4.{number}": name for number, name in ((3, "CN"), (6, "C"), (7, "L"), (8, "ST"), (10, "O"))}
_LIST_PROFILE = {ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER}

_Time = asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class _Signed:
    content: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class _Attribute:
    id: ObjectIdentifier
    value: asn1.PrintableString | str | asn1.TLV


@asn1.sequence
class _Name:
    parts: list[asn1.SetOf[_Attribute]]


@asn1.sequence
class _Extension:
    id: ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _Validity:
    not_before: _Time
    not_after: _Time


@asn1.sequence
class _Certificate:
    version: Annotated[int, asn1.Explicit(0), asn1.Default(0)]
    serial_number: int
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: _Validity
    subject: asn1.TLV
    public_key: asn1.TLV
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(3)]


@asn1.sequence
class _List:
    version: int | None
    algorithm: asn1.TLV
    issuer: asn1.TLV
    this_update: _Time
    next_update: _Time | None
    revoked: list[asn1.TLV] | None
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(0)]


@asn1.sequence
class _BasicConstraints:
    ca: Annotated[bool, asn1.Default(False)]
    path_length: int | None


@asn1.sequence
class _AuthorityKeyIdentifier:
    key_identifier: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _PointName:
    full_name: Annotated[list[Annotated[asn1.IA5String, asn1.Implicit(6)]], asn1.Implicit(0)]


@asn1.sequence
class _Point:
    name: Annotated[_PointName, asn1.Implicit(0)]


@asn1.sequence
class _Points:
    points: list[_Point]


@dataclass(frozen=True, slots=True)
class Extensions:
    """What the extensions of the profile say; None for one that is not there.

    `key_usage` holds the bits of the BIT STRING, the first (digitalSignature) lowest. `problem` says what no
    certificate of the profile may have or lack, whatever it is for; it is empty if nothing is wrong.
    """

    problem: str = ""
    authority_key_id: bytes | None = None
    subject_key_id: bytes | None = None
    key_usage: int = 0
    is_ca: bool = False
    path_length: int | None = None
    sgx: bytes | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, read in all its parts. Two are equal when their DER is.

    `signed` is what the issuer signed (tbsCertificate), `issuer` and `subject` the DER of the names, `point` the key
    as 04 ‖ x ‖ y (65 bytes; empty if it is not on P-256), `signature` the DER of an ECDSA signature; `digest` and
    `signed_digest` are SHA-256 of the DER and of what is signed.
    """

    der: bytes
    signed: bytes = field(compare=False, repr=False)
    serial_number: int = field(compare=False)
    issuer: bytes = field(compare=False, repr=False)
    subject: bytes = field(compare=False, repr=False)
    common_name: str = field(compare=False)
    not_before: datetime = field(compare=False)
    not_after: datetime = field(compare=False)
    point: bytes = field(compare=False, repr=False)
    algorithm: bytes = field(compare=False, repr=False)
    signature: bytes = field(compare=False, repr=False)
    digest: bytes = field(compare=False, repr=False)
    signed_digest: bytes = field(compare=False, repr=False)
    extensions: Extensions = field(compare=False, repr=False)
    _key: ec.EllipticCurvePublicKey | None = field(default=None, init=False, compare=False, repr=False)
    _sgx: PckExtension | None = field(default=None, init=False, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return read_certificate, (self.der,)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key of a certificate with a `point`; made once, because its first use costs as much as it does."""
        if self._key is None:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self.point)
            object.__setattr__(self, "_key", key)
        return self._key  # type: ignore[return-value]

    @property
    def sgx_extension(self) -> PckExtension | None:
        """Intel's SGX extension, read once; None if there is none."""
        if self._sgx is None and self.extensions.sgx is not None:
            object.__setattr__(self, "_sgx", PckExtension.parse(self.extensions.sgx))
        return self._sgx

    @property
    def key_digest(self) -> str:
        """SHA-256 of the public key (SubjectPublicKeyInfo of P-256), for people."""
        return sha256(_P256[:-1] + self.point).hexdigest()

    @property
    def subject_text(self) -> str:
        """The subject as RFC 4514 writes it."""
        return name_text(self.subject)

    @property
    def issuer_text(self) -> str:
        """The issuer as RFC 4514 writes it."""
        return name_text(self.issuer)

    def in_full(self) -> x509.Certificate:
        """The certificate as `cryptography` reads it, to show it to people."""
        return x509.load_der_x509_certificate(self.der)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL. `signed` is what the issuer signed (tbsCertList), `issuer` the DER of the name.

    `entries` looks serial numbers up: a list may have 100,000, which stay in the DER.
    """

    entries: x509.CertificateRevocationList
    signed: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    algorithm: bytes
    signature: bytes
    extensions: Mapping[ObjectIdentifier, tuple[bool, bytes]]


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate; raises one of `UNREADABLE`, with the reason as its text."""
    outer = asn1.decode_der(_Signed, der)
    found = outer.content.parse(_Certificate)
    algorithm, signature = _signature(outer, found.algorithm)
    key = asn1.encode_der(found.public_key)
    subject = asn1.encode_der(found.subject)
    common_name, unusual = _common_name(subject)
    issuer = asn1.encode_der(found.issuer)
    if issuer != subject:
        unusual |= _common_name(issuer)[1]
    extensions, odd = _read_extensions(found.extensions or [])
    on_p256 = len(key) == _SPKI_SIZE and key.startswith(_P256)
    signed = asn1.encode_der(outer.content)
    certificate = Certificate(
        der=der,
        signed=signed,
        serial_number=found.serial_number,
        issuer=issuer,
        subject=subject,
        common_name=common_name,
        not_before=_time(found.validity.not_before),
        not_after=_time(found.validity.not_after),
        point=key[-65:] if on_p256 else b"",
        algorithm=algorithm,
        signature=signature,
        digest=sha256(der).digest(),
        signed_digest=sha256(signed).digest(),
        extensions=extensions,
    )
    if found.version != _VERSION_3:
        raise ValueError(f"its version is {found.version + 1}, expected 3")
    if found.serial_number < 0 or found.serial_number.bit_length() > _MAX_SERIAL_BITS:
        raise ValueError("its serial number is negative, or longer than 20 bytes")
    if on_p256:
        _ = certificate.public_key
    else:
        load_der_public_key(key)
    if unusual or odd:
        full = certificate.in_full()
        names = full.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        object.__setattr__(certificate, "common_name", str(names[0].value) if len(names) == 1 else "")
        _ = full.extensions, full.issuer
    return certificate


def read_revocation_list(der: bytes) -> RevocationList:
    """Read a CRL; raises one of `UNREADABLE`, with the reason as its text."""
    outer = asn1.decode_der(_Signed, der)
    found = outer.content.parse(_List)
    algorithm, signature = _signature(outer, found.algorithm)
    issuer = asn1.encode_der(found.issuer)
    entries = x509.load_der_x509_crl(der)
    extensions = {one.id: (one.critical, one.value) for one in found.extensions or ()}
    _, key_id = extensions.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER, (False, b""))
    if extensions.keys() - _LIST_PROFILE or authority_key_id(key_id) is None or _common_name(issuer)[1]:
        _ = entries.extensions, entries.issuer
    if len(extensions) != len(found.extensions or ()):
        raise ValueError("it has an extension twice")
    return RevocationList(
        entries=entries,
        signed=asn1.encode_der(outer.content),
        issuer=issuer,
        this_update=_time(found.this_update),
        next_update=None if found.next_update is None else _time(found.next_update),
        algorithm=algorithm,
        signature=signature,
        extensions=extensions,
    )


def _signature(outer: _Signed, inside: asn1.TLV) -> tuple[bytes, bytes]:
    """Algorithm and signature. The algorithm stands inside and outside of what is signed: both must say the same."""
    algorithm = bytes(outer.algorithm.data)
    if bytes(inside.data) != algorithm or not outer.algorithm.tag_bytes == inside.tag_bytes == _SEQUENCE:
        raise ValueError("it names two signature algorithms")
    # A count of unused bits is a byte that nothing signs.
    if outer.signature.padding_bits():
        raise ValueError("the signature is not whole bytes")
    return algorithm, outer.signature.as_bytes()


def _time(found: asn1.UTCTime | asn1.GeneralizedTime) -> datetime:
    value = found.as_datetime()
    # RFC 5280 §4.1.2.5: one spelling for each time.
    if isinstance(found, asn1.GeneralizedTime) and value.year < _FIRST_GENERALIZED_YEAR:
        raise ValueError(f"it writes a time before {_FIRST_GENERALIZED_YEAR} as GeneralizedTime")
    return value


@lru_cache(_FEW)
def _common_name(name: bytes) -> tuple[str, bool]:
    """The one common name, empty when there are none or several; and whether the name has kinds of text beyond ours."""
    found, unusual = [], False
    for part in asn1.decode_der(_Name, wrapped(name)).parts:
        for attribute in part.as_list():
            value = attribute.value
            text = value.as_str() if isinstance(value, asn1.PrintableString) else value
            if not isinstance(text, str):
                unusual = True
            elif not text:
                raise ValueError("it has a name with an empty part")
            elif attribute.id == NameOID.COMMON_NAME:
                found.append(text)
    return found[0] if len(found) == 1 and not unusual else "", unusual


def name_text(name: bytes) -> str:
    """A name (DER) as RFC 4514 writes it, the most specific part first; other kinds of text as hexadecimal digits."""
    parts = (part.as_list() for part in reversed(asn1.decode_der(_Name, wrapped(name)).parts))
    return ",".join("+".join(_attribute_text(one) for one in part) for part in parts)


def _attribute_text(attribute: _Attribute) -> str:
    kind, value = attribute.id.dotted_string, attribute.value
    if isinstance(value, asn1.TLV):
        return f"{kind}=#{asn1.encode_der(value).hex()}"
    text = value.as_str() if isinstance(value, asn1.PrintableString) else value
    # RFC 4514 §2.4.
    text = re.sub(r'(^[ #]|[ ]$|["+,;<>\\])', r"\\\1", text).replace("\0", "\\00")
    return f"{_SHORT_NAMES.get(kind, kind)}={text}"


def _read_extensions(found: Sequence[_Extension]) -> tuple[Extensions, bool]:
    """The extensions, and whether one of them is not as in Intel's certificates."""
    by_id = {one.id: one.value for one in found}
    if len(by_id) != len(found):
        raise ValueError("it has an extension twice")
    values: dict[str, Any] = {"problem": _problem(found)}
    odd = not by_id.keys() <= _PROFILE
    if (value := by_id.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)) is not None:
        values["authority_key_id"] = authority_key_id(value)
        odd |= values["authority_key_id"] is None
    if (value := by_id.get(ExtensionOID.SUBJECT_KEY_IDENTIFIER)) is not None:
        values["subject_key_id"] = asn1.decode_der(bytes, value)
    if (value := by_id.get(ExtensionOID.KEY_USAGE)) is not None:
        values["key_usage"] = _bits(value)
    if (value := by_id.get(ExtensionOID.BASIC_CONSTRAINTS)) is not None:
        values["is_ca"], values["path_length"] = _constraints(value)
    if (value := by_id.get(ExtensionOID.CRL_DISTRIBUTION_POINTS)) is not None:
        odd |= not _are_points(value)
    values["sgx"] = by_id.get(_SGX_EXTENSION)
    return Extensions(**values), odd


def _problem(found: Sequence[_Extension]) -> str:
    critical = {one.id: one.critical for one in found}
    for oid, (name, must_be) in _NEEDED.items():
        if oid not in critical:
            return f"has no {name}"
        if critical[oid] != must_be:
            return f"has {name} {'not ' if must_be else ''}marked as critical"
    unknown = [one.id for one in found if one.critical and one.id not in _NEEDED]
    # Names are not constrained in Intel's PKI.
    unknown += [one.id for one in found if one.id == ExtensionOID.NAME_CONSTRAINTS]
    return f"has a critical extension that is not known, {unknown[0].dotted_string}" if unknown else ""


@lru_cache(_FEW)
def _constraints(value: bytes) -> tuple[bool, int | None]:
    found = asn1.decode_der(_BasicConstraints, value)
    if found.path_length is not None and (found.path_length < 0 or not found.ca):
        raise ValueError("its path length is negative, or that of no CA")
    return found.ca, found.path_length


@lru_cache(_FEW)
def _are_points(value: bytes) -> bool:
    """Whether these are CRL distribution points as Intel writes them: URIs alone."""
    try:
        asn1.decode_der(_Points, wrapped(value))
    except ValueError:
        return False
    return True


@lru_cache(_FEW)
def authority_key_id(value: bytes) -> bytes | None:
    """The key identifier of an AuthorityKeyIdentifier that has nothing else, as Intel's; None for other forms."""
    try:
        return asn1.decode_der(_AuthorityKeyIdentifier, value).key_identifier
    except ValueError:
        return None


@lru_cache(_FEW)
def _bits(value: bytes) -> int:
    data = asn1.decode_der(asn1.BitString, value).as_bytes()
    return sum(1 << bit for bit in range(8 * len(data)) if data[bit // 8] >> 7 - bit % 8 & 1)
