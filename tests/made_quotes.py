"""Quotes written by hand from the documented offsets, so that tests do not check the codec against itself.

Nothing in them is signed: every field holds bytes that tell it from its neighbours.
"""

from __future__ import annotations

from record_layout import distinct

VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODY_SIZES = {1: 384, 2: 584, 3: 648, 4: 885}
"""Bytes of a report body by its type number in version 5."""

SIGNATURE = distinct(64, 10)
ATTESTATION_KEY = distinct(64, 20)
QE_REPORT = distinct(384, 30)
QE_REPORT_SIGNATURE = distinct(64, 40)
QE_AUTHENTICATION_DATA = bytes(range(32))


def u16(value: int) -> bytes:
    """Two bytes, little-endian."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Four bytes, little-endian."""
    return value.to_bytes(4, "little")


def header(version: int, tee_type: int = 0) -> bytes:
    """The 48 bytes that every quote begins with."""
    return u16(version) + u16(2) + u32(tee_type) + u16(0x0908) + u16(0x0B0A) + VENDOR + distinct(20, 50)


def entry(number: int, data: bytes) -> bytes:
    """One piece of certification data: type, size, data."""
    return u16(number) + u32(len(data)) + data


def qe_part(certification: bytes, authentication: bytes = QE_AUTHENTICATION_DATA) -> bytes:
    """QE report, its signature, authentication data and certification data, as they follow each other everywhere."""
    return QE_REPORT + QE_REPORT_SIGNATURE + u16(len(authentication)) + authentication + certification


def with_section(signed: bytes, section: bytes) -> bytes:
    """The signed bytes, the size of the signature section, and the section."""
    return signed + u32(len(section)) + section


def quote_v3(number: int = 5, data: bytes = b"chain\0", authentication: bytes = QE_AUTHENTICATION_DATA) -> bytes:
    """A version 3 quote: the QE report stands flat in the signature section."""
    section = SIGNATURE + ATTESTATION_KEY + qe_part(entry(number, data), authentication)
    return with_section(header(3) + distinct(384), section)


def quote_v4(
    tee_type: int = 0x81,
    number: int = 5,
    data: bytes = b"chain\0",
    outer: int = 6,
    authentication: bytes = QE_AUTHENTICATION_DATA,
) -> bytes:
    """A version 4 quote: the QE report stands in certification data of type 6."""
    body = distinct(384 if tee_type == 0 else 584)
    section = SIGNATURE + ATTESTATION_KEY + entry(outer, qe_part(entry(number, data), authentication))
    return with_section(header(4, tee_type) + body, section)


def quote_v5(body_type: int = 3, number: int = 5, data: bytes = b"chain\0") -> bytes:
    """A version 5 quote: type and size of the body stand before it."""
    body = distinct(BODY_SIZES[body_type])
    section = SIGNATURE + ATTESTATION_KEY + entry(6, qe_part(entry(number, data)))
    return with_section(header(5, 0 if body_type == 1 else 0x81) + u16(body_type) + u32(len(body)) + body, section)


def poke(data: bytes, offset: int, value: bytes) -> bytes:
    """The data with other bytes at one place."""
    return data[:offset] + value + data[offset + len(value) :]
