"""Bytes written as text: marks of encodings that editors and shells put before it, and base64 in its four spellings."""

from __future__ import annotations

import base64
import binascii
import codecs
import string

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
