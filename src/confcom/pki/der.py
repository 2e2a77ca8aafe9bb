"""Certificates and revocation lists (RFC 5280) of Intel's PKI: what its fixed profile uses (dcap.md §2).

Names stay as slices of the DER, which are compared byte by byte. Nothing here is verified. What the profile does not
use (other kinds of names, other extensions) is read by `cryptography` as well, so that no part is unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec.structs import force_setattr

from confcom.formats import der
from confcom.formats.der import DerError
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension

# What `cryptography` raises for DER that it does not read. It warns of what is against the rules (a negative number);
# where a process makes warnings errors, they arrive as exceptions. A `DerError` is a `ValueError`.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)


def der_reason(error: Exception) -> str:
    """Why DER or PEM is unreadable, without the addresses and the inner state that `cryptography` names."""
    text = str(error)
    if "Unable to load PEM" in text:
        return "no PEM stands there"
    if "ParseError" not in text:
        return text
    if "ShortData" in text:
        return der.CUT_OFF
    places = re.findall(r'"\w+::(\w+)"', text)
    return str(DerError.at(places[-1])) if places else "the bytes are not its DER"


P256 = ec.SECP256R1()
ECDSA_WITH_SHA256 = bytes.fromhex("06082a8648ce3d040302")
"""Content of the AlgorithmIdentifier of every signature of the profile, 10 bytes: an OID, no parameters."""
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""SubjectPublicKeyInfo of a key on P-256, up to x‖y: 27 bytes."""
_SPKI_SIZE = len(_P256) + 64
_FEW = 32
"""Names, and lists of places, that are read once: a PKI has a dozen of each."""
_MAX_SERIAL_BITS = 160
_MAX_PATH_LENGTH = 0xFFFF_FFFF
_FIRST_GENERALIZED_YEAR = 2050
_KEY_ID, _FULL_NAME, _POINT_NAME, _URI = 0x80, 0xA0, 0xA0, 0x86

_SGX_EXTENSION = der.oid(PCK_EXTENSION_OID)
AUTHORITY_KEY_ID, SUBJECT_KEY_ID, CRL_POINTS, KEY_USAGE, BASIC_CONSTRAINTS, NAME_CONSTRAINTS = (
    der.oid(f"2.5.29.{number}") for number in (35, 14, 31, 15, 19, 30)
)
# Every certificate of the profile has these, and two of them critical; they are no web certificates.
_NEEDED = {
    AUTHORITY_KEY_ID: ("authority key identifier", False),
    SUBJECT_KEY_ID: ("subject key identifier", False),
    CRL_POINTS: ("CRL distribution points", False),
    KEY_USAGE: ("key usage", True),
    BASIC_CONSTRAINTS: ("basic constraints", True),
}
_PROFILE = {*_NEEDED, _SGX_EXTENSION}
_CRITICAL = {identifier: critical for identifier, (_, critical) in _NEEDED.items()}
_USUAL = _CRITICAL, _CRITICAL | {_SGX_EXTENSION: False}
"""Which extensions are critical, in certificates of the profile."""
_COMMON_NAME = der.oid("2.5.4.3")
_SHORT_NAMES = {
    der.oid(f"2.5.4.{number}"): name for number, name in ((3, "CN"), (6, "C"), (7, "L"), (8, "ST"), (10, "O"))
}
_PRINTABLE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"


class Extensions(msgspec.Struct, frozen=True):
    """What the extensions of the profile say; None for one that is not there.

    `key_usage` is the first byte of the BIT STRING, empty without bits. `problem` says what no
    certificate of the profile may have or lack, whatever it is for; it is empty if nothing is wrong.
    """

    problem: str = ""
    authority_key_id: bytes | None = None
    subject_key_id: bytes | None = None
    key_usage: bytes = b""
    is_ca: bool = False
    path_length: int | None = None
    sgx: bytes | None = None


class Certificate(msgspec.Struct, frozen=True, eq=False):
    """A certificate, read in all its parts. Two are equal when their DER is.

    `issuer` and `subject` are the DER of the names, `point` is the key as 04 ‖ x ‖ y (65 bytes; empty if it is not on
    P-256), `signature` the DER of an ECDSA signature, `signed_digest` the SHA-256 of what the issuer signed
    (tbsCertificate); `self_issued`: issuer and subject are the same.
    """

    der: bytes
    serial_number: int
    issuer: bytes
    subject: bytes
    common_name: str
    not_before: datetime
    not_after: datetime
    point: bytes
    algorithm: bytes
    signature: bytes
    signed_digest: bytes
    self_issued: bool
    extensions: Extensions
    _key: ec.EllipticCurvePublicKey | None = None
    _sgx: PckExtension | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __ne__(self, other: object) -> bool:
        return not self == other  # else msgspec's, for which any two objects differ

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.common_name!r}, serial number {self.serial_number:x}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return read_certificate, (self.der,)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key of a certificate with a `point`; made once, because its first use costs as much as it does."""
        if self._key is None:
            key = ec.EllipticCurvePublicKey.from_encoded_point(P256, self.point)
            force_setattr(self, "_key", key)
        return self._key  # type: ignore[return-value]

    @property
    def sgx_extension(self) -> PckExtension | None:
        """Intel's SGX extension, read once; None if there is none."""
        if self._sgx is None and self.extensions.sgx is not None:
            force_setattr(self, "_sgx", PckExtension.parse(self.extensions.sgx))
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


def read_certificate(data: bytes) -> Certificate:
    """Read a certificate; raises one of `UNREADABLE`, with the reason as its text."""
    found = der.read_certificate_parts(data)
    common_name, unusual = read_name(found.subject)
    self_issued = found.issuer == found.subject
    if not self_issued:
        unusual |= read_name(found.issuer)[1]
    extensions, odd = _read_extensions(found.extensions)
    key = found.public_key
    on_p256 = len(key) == _SPKI_SIZE and key.startswith(_P256)
    certificate = Certificate(
        der=data,
        serial_number=_serial_number(found.serial_number),
        issuer=found.issuer,
        subject=found.subject,
        common_name=common_name,
        not_before=read_time(*found.not_before[:2]),
        not_after=read_time(*found.not_after[:2]),
        point=key[-65:] if on_p256 else b"",
        algorithm=found.algorithm,
        signature=found.signature,
        signed_digest=sha256(found.signed).digest(),
        self_issued=self_issued,
        extensions=extensions,
    )
    if on_p256:
        _ = certificate.public_key
    else:
        certificate.in_full().public_key()
    if unusual or odd:
        full = certificate.in_full()
        names = full.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        force_setattr(certificate, "common_name", str(names[0].value) if len(names) == 1 else "")
        _ = full.extensions, full.issuer
    return certificate


class CertificateFrame(msgspec.Struct, frozen=True):
    """What PCK certificates of one CA have in common: another one is read by its differences from the `first`."""

    first: Certificate
    _frame: der.Frame
    _times: tuple[int, int]
    _signed: slice

    @classmethod
    def of(cls, first: Certificate) -> CertificateFrame | None:
        """The frame of a certificate; None if it is no PCK certificate as Intel's are."""
        found = der.read_certificate_parts(first.der)
        extensions, odd = _read_extensions(found.extensions)
        unusual = read_name(found.subject)[1] or read_name(found.issuer)[1]
        key_id, sgx = extensions.subject_key_id, extensions.sgx
        if odd or unusual or not first.point or key_id is None or sgx is None:
            return None
        serial = der.write_integer(found.serial_number)[2:]
        times = found.not_before, found.not_after
        values = serial, times[0][1], times[1][1], first.point[1:], key_id, sgx, found.signature
        frame = der.Frame.of(first.der, values)
        if frame is None:
            return None
        start = len(first.der) - len(der.content_of(first.der, der.SEQUENCE, ""))
        return cls(first, frame, (times[0][0], times[1][0]), slice(start, start + len(found.signed)))

    def read(self, data: bytes) -> Certificate | None:
        """A certificate of the same frame, as `read_certificate` reads it; None for others, and for wrong values."""
        values = self._frame.values(data)
        if values is None:
            return None
        serial, begin, end, xy, key_id, sgx, signature = values
        first = self.first
        known = first.extensions
        try:
            certificate = Certificate(
                der=data,
                serial_number=_serial_number(der.integer(serial)),
                issuer=first.issuer,
                subject=first.subject,
                common_name=first.common_name,
                not_before=read_time(self._times[0], begin),
                not_after=read_time(self._times[1], end),
                point=b"\x04" + xy,
                algorithm=first.algorithm,
                signature=signature,
                signed_digest=sha256(data[self._signed]).digest(),
                self_issued=first.self_issued,
                extensions=Extensions(
                    known.problem,
                    known.authority_key_id,
                    key_id,
                    known.key_usage,
                    known.is_ca,
                    known.path_length,
                    sgx,
                ),
            )
            _ = certificate.public_key
        except ValueError:
            return None
        return certificate


def _serial_number(number: int) -> int:
    if number < 0 or number.bit_length() > _MAX_SERIAL_BITS:
        raise DerError("its serial number is negative, or longer than 20 bytes")
    return number


def read_time(tag: int, content: bytes) -> datetime:
    """A time of a certificate or a list, in its one spelling (RFC 5280 §4.1.2.5)."""
    value = der.time(tag, content)
    if tag == der.GENERALIZED_TIME and value.year < _FIRST_GENERALIZED_YEAR:
        raise DerError(f"it writes a time before {_FIRST_GENERALIZED_YEAR} as GeneralizedTime")
    return value


@lru_cache(_FEW)
def read_name(name: bytes) -> tuple[str, bool]:
    """The one common name, empty when there are none or several; and whether the name has kinds of text beyond ours."""
    found, unusual = [], False
    for rows in _attributes(name):
        for kind, text, _ in rows:
            if text is None or kind not in _SHORT_NAMES or len(rows) > 1:
                unusual = True
            elif not text:
                raise DerError("it has a name with an empty part")
            elif kind == _COMMON_NAME:
                found.append(text)
    return found[0] if len(found) == 1 and not unusual else "", unusual


_Attribute: TypeAlias = tuple[bytes, str | None, bytes]
"""The content of the OID; the text of the value, None for other kinds; the whole value."""


def _attributes(name: bytes) -> list[list[_Attribute]]:
    """The attributes of each part of a name."""
    return [_part(part) for _, _, part in der.sequence(name, "name")]


@lru_cache(_FEW)
def _part(part: bytes) -> list[_Attribute]:
    """The attributes of a part of a name; most parts stand in every name of a PKI."""
    attributes = []
    for tag, content, _ in der.elements(der.content_of(part, der.SET, "name")):
        members = der.elements(content)
        if tag != der.SEQUENCE or len(members) != 2 or members[0][0] != der.OID:
            raise DerError.at("name")
        kind_of_text, value, whole = members[1]
        attributes.append((members[0][1], _text(kind_of_text, value), whole))
    if not attributes:
        raise DerError.at("name")
    return attributes


def _text(tag: int, value: bytes) -> str | None:
    """A PrintableString or UTF8String; None for other kinds."""
    if tag == der.UTF8_STRING:
        return value.decode()
    if tag != der.PRINTABLE_STRING:
        return None
    if value.translate(None, _PRINTABLE):
        raise DerError("it has a PrintableString with other characters")
    return value.decode()


def name_text(name: bytes) -> str:
    """A name (DER) as RFC 4514 writes it, the most specific part first; other kinds of text as hexadecimal digits."""
    return ",".join("+".join(_attribute_text(*one) for one in part) for part in reversed(_attributes(name)))


def _attribute_text(kind: bytes, text: str | None, whole: bytes) -> str:
    name = _SHORT_NAMES.get(kind) or der.oid_text(kind)
    if text is None:
        return f"{name}=#{whole.hex()}"
    # RFC 4514 §2.4.
    text = re.sub(r'(^[ #]|[ ]$|["+,;<>\\])', r"\\\1", text).replace("\0", "\\00")
    return f"{name}={text}"


def _read_extensions(found: Mapping[bytes, tuple[bool, bytes]]) -> tuple[Extensions, bool]:
    """The extensions, and whether one of them is not as in Intel's certificates."""
    critical, values = {}, {}
    for identifier, (is_critical, value) in found.items():
        critical[identifier], values[identifier] = is_critical, value
    authority, subject, points, usage, constraints = map(values.get, _NEEDED)
    issuer_key = None if authority is None else authority_key_id(authority)
    is_ca, path_length = (False, None) if constraints is None else _constraints(constraints)
    odd = not found.keys() <= _PROFILE or (authority is not None and issuer_key is None)
    return Extensions(
        problem="" if critical in _USUAL else _problem(found),
        authority_key_id=issuer_key,
        subject_key_id=None if subject is None else der.content_of(subject, der.OCTET_STRING, "subjectKeyIdentifier"),
        key_usage=b"" if usage is None else der.bit_string(der.content_of(usage, der.BIT_STRING, "keyUsage"))[0][:1],
        is_ca=is_ca,
        path_length=path_length,
        sgx=values.get(_SGX_EXTENSION),
    ), odd or (points is not None and not _are_points(points))


def _problem(found: Mapping[bytes, tuple[bool, bytes]]) -> str:
    for identifier, (name, must_be) in _NEEDED.items():
        if identifier not in found:
            return f"has no {name}"
        if found[identifier][0] is not must_be:
            return f"has {name} {'not ' if must_be else ''}marked as critical"
    # Names are not constrained in Intel's PKI.
    for identifier, (critical, _) in found.items():
        if (critical and identifier not in _NEEDED) or identifier == NAME_CONSTRAINTS:
            return f"has a critical extension that is not known, {der.oid_text(identifier)}"
    return ""


def _constraints(value: bytes) -> tuple[bool, int | None]:
    found = der.sequence(value, "basicConstraints")
    is_ca = bool(found) and found[0][:2] == (der.BOOLEAN, der.TRUE)
    if not found[is_ca:]:
        return is_ca, None
    (tag, content, _), *more = found[is_ca:]
    if tag != der.INTEGER or more:
        raise DerError.at("basicConstraints")
    length = der.integer(content)
    if not 0 <= length <= _MAX_PATH_LENGTH or not is_ca:
        raise DerError("its path length is negative, absurdly long, or that of no CA")
    return is_ca, length


@lru_cache(_FEW)
def _are_points(value: bytes) -> bool:
    """Whether these are CRL distribution points as Intel writes them: one name each, URIs alone."""
    try:
        for tag, point, _ in der.sequence(value, "cRLDistributionPoints"):
            uris = der.elements(der.content_of(der.content_of(point, _POINT_NAME, ""), _FULL_NAME, ""))
            kinds = {kind for kind, _, _ in uris}
            if tag != der.SEQUENCE or kinds != {_URI} or not all(uri.isascii() for _, uri, _ in uris):
                return False
    except DerError:
        return False
    return True


def authority_key_id(value: bytes) -> bytes | None:
    """The key identifier of an AuthorityKeyIdentifier that has nothing else, as Intel's; None for other forms."""
    try:
        return der.content_of(der.content_of(value, der.SEQUENCE, ""), _KEY_ID, "")
    except DerError:
        return None
