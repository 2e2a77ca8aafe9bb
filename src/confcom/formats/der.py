"""DER (X.690): elements, the values that certificates hold, and the parts of a certificate (RFC 5280 §4.1).

Strict: lengths and integers in their shortest form only. Nothing here is verified, and no algorithm
is known. A `DerError` is a sentence without the name of the document, which the caller adds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter

import msgspec

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID, ENUMERATED = 0x01, 0x02, 0x03, 0x04, 0x06, 0x0A
UTF8_STRING, PRINTABLE_STRING, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
TRUE, FALSE = b"\xff", b"\0"
NULL = b"\x05\0"
"""The whole element."""

MAX_ELEMENTS = 64
"""Elements of one SEQUENCE that are read. A TCB has 18; longer lists (revoked certificates) stay as they are."""
MAX_OID = 63
"""Bytes of an OBJECT IDENTIFIER, as `cryptography` bounds them."""
_MAX_SIZE_OF_LENGTH = 4
CUT_OFF = "the bytes end before the DER does: they are cut off, or no DER"

Element = tuple[int, bytes, bytes]
"""Tag, content, and both with the length between them."""
TAG = itemgetter(0)
"""The tag of an element."""


class DerError(ValueError):
    """The bytes are not the DER that is expected."""

    @classmethod
    def at(cls, place: str) -> DerError:
        """The sentence for an element of another type, or too many or too few of them."""
        return cls("the bytes are not its DER" + (f", at {place}" if place else ""))


def elements(data: bytes) -> list[Element]:
    """The elements in `data`, one after the other. Of a tag of several bytes the first is taken: callers know none."""
    found: list[Element] = []
    start, end = 0, len(data)
    try:
        for _ in range(MAX_ELEMENTS):
            if start >= end:
                break
            length, content = data[start + 1], start + 2
            if length > 0x7F:
                content += length & 0x7F
                length = _long_length(data[start + 2 : content])
            stop = content + length
            found.append((data[start], data[content:stop], data[start:stop]))
            start = stop
    except IndexError:
        raise DerError(CUT_OFF) from None
    if start != end:
        raise DerError(CUT_OFF if start > end else "the bytes are not its DER: too many elements")
    return found


def _long_length(data: bytes) -> int:
    length = int.from_bytes(data)
    if length < 0x80 or data[0] == 0 or len(data) > _MAX_SIZE_OF_LENGTH:
        raise DerError("the bytes are not its DER: a length is not in its shortest form")
    return length


def content_of(data: bytes, tag: int, place: str) -> bytes:
    """The content of the one element in `data`."""
    start, size = 2, len(data) - 2
    if size < 0:
        raise DerError(CUT_OFF)
    length = data[1]
    if length > 0x7F:
        start += length & 0x7F
        length = _long_length(data[2:start])
        size = len(data) - start
    if length != size or data[0] != tag:
        raise DerError(CUT_OFF) if length > size else DerError.at(place)
    return data[start:]


def sequence(data: bytes, place: str, *tags: int) -> list[Element]:
    """The members of the one SEQUENCE in `data`; exactly these tags, if any are given."""
    members = elements(content_of(data, SEQUENCE, place))
    if tags and tags != tuple(map(TAG, members)):
        raise DerError.at(place)
    return members


class Frame(msgspec.Struct, frozen=True):
    """The bytes of a document around the values in which documents of its kind differ.

    A document with the same frame has the same elements, of the same sizes at the same places: what was checked of the
    first document's frame holds for it too, and only the values have to be read.
    """

    _layout: struct.Struct
    _rest: tuple[bytes, ...]

    @classmethod
    def of(cls, data: bytes, values: Sequence[bytes]) -> Frame | None:
        """The frame around the values, in their order; None if one of them stands at two places, or at none."""
        sizes, end = [], 0
        for value in values:
            start = data.find(value)
            if start < end or data.find(value, start + 1) >= 0:
                return None
            sizes += [start - end, len(value)]
            end = start + len(value)
        layout = struct.Struct("".join([f"{size}s" for size in (*sizes, len(data) - end)]))
        return cls(layout, layout.unpack(data)[::2])

    def values(self, data: bytes) -> tuple[bytes, ...] | None:
        """The values in another document; None if it has another frame."""
        if len(data) != self._layout.size:
            return None
        parts = self._layout.unpack(data)
        return parts[1::2] if parts[::2] == self._rest else None


def write(tag: int, *contents: bytes) -> bytes:
    """An element of these contents, one after the other."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(content: bytes) -> int:
    """The value of an INTEGER."""
    if not content or (len(content) > 1 and content[0] in (0, 0xFF) and content[0] >> 7 == content[1] >> 7):
        raise DerError("an integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def write_integer(value: int) -> bytes:
    """An INTEGER, not negative."""
    return write(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def bit_string(content: bytes) -> tuple[bytes, int]:
    """The bytes of a BIT STRING, and how many bits of the last one are unused."""
    unused, value = content[0] if content else 8, content[1:]
    if unused > (7 if value else 0) or (value and value[-1] & (1 << unused) - 1):
        raise DerError("a BIT STRING has wrong unused bits")
    return value, unused


_TIMES = {UTC_TIME: 13, GENERALIZED_TIME: 15}
"""Bytes of each form."""


def time(tag: int, content: bytes) -> datetime:
    """A time in UTC, of the two forms that RFC 5280 §4.1.2.5 allows."""
    digits = content[:-1]
    if len(content) != _TIMES.get(tag) or not digits.isdigit() or content[-1:] != b"Z":
        raise DerError("a time is not of the form YYMMDDhhmmssZ or YYYYMMDDhhmmssZ")
    text = digits.decode()
    if tag == UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    try:
        # Newer Pythons read the hour 24 as the next day.
        if text[8:10] == "24":
            raise ValueError("an hour is at most 23")
        return datetime.fromisoformat(f"{text[:8]}T{text[8:]}Z")
    except ValueError as error:
        raise DerError(f"no such time: {text}") from error


# Groups of seven bits, of which the last one of a number has no high bit, and the first one is not zero alone.
_OID = re.compile(rb"(?:(?!\x80)[\x80-\xff]*[\0-\x7f])+")


@lru_cache(64)
def check_oid(content: bytes) -> None:
    """Refuse an OBJECT IDENTIFIER that is not in its shortest form, or longer than any that is in use."""
    if len(content) > MAX_OID or not _OID.fullmatch(content):
        raise DerError(f"an object identifier is not in its shortest form, or longer than {MAX_OID} bytes")


def oid_text(content: bytes) -> str:
    """An OBJECT IDENTIFIER as numbers with dots."""
    check_oid(content)
    numbers, number = [], 0
    for byte in content:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def oid(text: str) -> bytes:
    """The content of an OBJECT IDENTIFIER, from numbers with dots."""
    first, second, *rest = map(int, text.split("."))
    content = bytearray()
    for number in (40 * first + second, *rest):
        groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
        content += bytes((*(0x80 | group for group in groups[:0:-1]), groups[0]))
    return bytes(content)


_EXTENSION_REQUEST = oid("1.2.840.113549.1.9.14")


class Signed(msgspec.Struct, frozen=True):
    """What certificates, lists and requests have in common: the members of what is signed, and the signature.

    `signed` is the signed element (tbsCertificate, tbsCertList), `tags` has one byte for each of its members.
    `algorithm` is the content of the AlgorithmIdentifier, which in certificates and lists stands among the members too.
    """

    members: list[Element]
    tags: bytes
    signed: bytes
    algorithm: bytes
    signature: bytes


def read_signed(data: bytes) -> Signed:
    """Read the outer layer of a certificate, a list or a request."""
    (_, content, signed), (_, algorithm, _), (_, bits, _) = sequence(data, "", SEQUENCE, SEQUENCE, BIT_STRING)
    members = elements(content)
    # The count of unused bits is not signed.
    if not bits.startswith(b"\0"):
        raise DerError("the signature is not whole bytes")
    return Signed(members, bytes(map(TAG, members)), signed, algorithm, bits[1:])


TWO_ALGORITHMS = "it names two signature algorithms"


class CertificateParts(msgspec.Struct, frozen=True):
    """A certificate of version 3 in its parts. Names, times and key are whole elements.

    `extensions` has, by the content of its OID, whether an extension is critical, and its value.
    """

    signed: bytes
    serial_number: int
    issuer: bytes
    subject: bytes
    not_before: Element
    not_after: Element
    public_key: bytes
    algorithm: bytes
    signature: bytes
    extensions: dict[bytes, tuple[bool, bytes]]


_VERSION_3 = bytes.fromhex("a003020102")
_EXTENSIONS = b"\xa3"
# Version, serial number, algorithm, issuer, validity, subject, key; extensions may follow, unique identifiers not.
_MEMBERS = bytes.fromhex("a0023030303030")


def read_certificate_parts(data: bytes) -> CertificateParts:
    """Read a certificate of any PKI."""
    outer = read_signed(data)
    members = outer.members
    if not members or members[0][2] != _VERSION_3:
        raise DerError("its version is not 3")
    if outer.tags.removesuffix(_EXTENSIONS) != _MEMBERS:
        raise DerError.at("tbsCertificate")
    if members[2][1] != outer.algorithm:
        raise DerError(TWO_ALGORITHMS)
    validity = elements(members[4][1])
    if len(validity) != 2:
        raise DerError.at("validity")
    return CertificateParts(
        signed=outer.signed,
        serial_number=integer(members[1][1]),
        issuer=members[3][2],
        subject=members[5][2],
        not_before=validity[0],
        not_after=validity[1],
        public_key=members[6][2],
        algorithm=outer.algorithm,
        signature=outer.signature,
        extensions=read_extensions(members[7][1]) if len(members) > len(_MEMBERS) else {},
    )


class RequestParts(msgspec.Struct, frozen=True):
    """A certification request (PKCS #10, RFC 2986) in its parts. Subject and key are whole elements.

    `extensions` are those that it asks for, as those of a certificate.
    `only_extensions`: it has no other attribute, of which some services take names too.
    """

    signed: bytes
    subject: bytes
    public_key: bytes
    algorithm: bytes
    signature: bytes
    extensions: dict[bytes, tuple[bool, bytes]]
    only_extensions: bool


# Version, subject, key, attributes.
_REQUEST_MEMBERS = bytes.fromhex("023030a0")
_VERSION_1 = bytes.fromhex("020100")


def read_request_parts(data: bytes) -> RequestParts:
    """Read a certification request; attributes other than the request for extensions are left alone."""
    outer = read_signed(data)
    members = outer.members
    if outer.tags != _REQUEST_MEMBERS or members[0][2] != _VERSION_1:
        raise DerError.at("certificationRequestInfo")
    requested, attributes = [], elements(members[3][1])
    for _, _, attribute in attributes:
        (_, kind, _), (_, values, _) = sequence(attribute, "attributes", OID, SET)
        if kind == _EXTENSION_REQUEST:
            requested.append(values)
    if len(requested) > 1:
        raise DerError("it asks for extensions twice")
    extensions = read_extensions(requested[0]) if requested else {}
    subject, key, only = members[1][2], members[2][2], len(attributes) == len(requested)
    return RequestParts(outer.signed, subject, key, outer.algorithm, outer.signature, extensions, only)


def read_extensions(data: bytes) -> dict[bytes, tuple[bool, bytes]]:
    """The extensions of a certificate or a list, by the content of their OID; one that stands twice is an error."""
    rows, found = sequence(data, "extensions"), {}
    for tag, row, _ in rows:
        if tag != SEQUENCE or len(row) < 2 or row[0] != OID:
            raise DerError.at("extensions")
        end = 2 + row[1]
        identifier, value = row[2:end], row[end:]
        check_oid(identifier)
        critical = value.startswith(_CRITICAL)
        found[identifier] = critical, content_of(value[3:] if critical else value, OCTET_STRING, "extensions")
    if len(found) != len(rows):
        raise DerError("it has an extension twice")
    return found


_CRITICAL = bytes((BOOLEAN, 1)) + TRUE
"""The whole element; for FALSE, the default, there is none."""
