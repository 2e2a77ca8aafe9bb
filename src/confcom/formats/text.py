"""Bytes written as text: byte order marks and UTF-16, base64 in its four spellings, members of JSON."""

from __future__ import annotations

import base64
import binascii
import codecs
import string
from typing import Any

_DIGITS = f"{string.ascii_letters}{string.digits}+/-_".encode()
_STANDARD = bytes.maketrans(b"-_", b"+/")


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
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64(text: str) -> bytes:
    """Base64 or base64url, padded or not: tools and clients of attestation services write all four.

    Raises:
        ValueError: other characters, or a length that no bytes have.
    """
    unpadded = text.rstrip("=")
    digits = unpadded.encode("ascii", "replace")
    if len(text) - len(unpadded) > 2 or digits.translate(None, _DIGITS):
        raise ValueError("holds characters that base64 does not have")
    try:
        return binascii.a2b_base64(digits.translate(_STANDARD) + b"=" * (-len(digits) % 4))
    except binascii.Error as error:
        raise ValueError(f"is not base64: {error}") from error


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
