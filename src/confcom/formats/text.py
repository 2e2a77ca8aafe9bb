"""Bytes written as text: byte order marks and UTF-16, base64 in its four spellings, members of JSON."""

from __future__ import annotations

import binascii
import codecs
import json
import string
from typing import Any

import msgspec

_DIGITS = f"{string.ascii_letters}{string.digits}+/-_"


def without_bom(data: bytes) -> bytes:
    """Text as UTF-8 without a byte order mark; UTF-16 with one is converted. Other bytes stay as they are."""
    if data.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError:
            return data
    return data


def encode_base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    written = binascii.b2a_base64(data, newline=False)
    return written.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=").decode()


def decode_base64(text: str) -> bytes:
    """Base64 or base64url, padded or not: tools and clients of attestation services write all four.

    Raises:
        ValueError: other characters, or a length that no bytes have.
    """
    digits = text.rstrip("=")
    # msgspec's decoder takes exactly the padded standard form, in a third of the time of binascii's.
    standard = digits.replace("-", "+").replace("_", "/") + "=" * (-len(digits) % 4)
    try:
        if len(text) - len(digits) <= 2:
            return msgspec.convert(standard, bytes)
    except (msgspec.ValidationError, UnicodeEncodeError):
        pass
    if wrong := digits.strip(_DIGITS) or text[len(digits) + 2 :]:
        raise ValueError(f"holds characters that base64 does not have, first {wrong[0]!r}")
    raise ValueError(f"is not base64: no bytes are written with {len(digits)} digits")


def members_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object for `json.loads(object_pairs_hook=…)`, in which no member stands twice: readers differ in which counts.

    Raises:
        ValueError: a member stands twice.
    """
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"{name[:40]!r} stands twice in one object")
        found[name] = value
    return found


def check_members_once(data: bytes) -> None:
    """Refuse JSON in which a member stands twice: msgspec takes the last of them, other readers the first.

    Raises:
        ValueError: a member stands twice.
    """
    json.loads(data, object_pairs_hook=members_once)
