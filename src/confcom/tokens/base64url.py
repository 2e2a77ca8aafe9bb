"""Base64 as attestation services and their clients write it."""

from __future__ import annotations

import base64
import binascii
import re

_DIGITS = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_STANDARD = str.maketrans("-_", "+/")


def encode(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Base64url or base64, padded or not: clients of Azure Attestation send all four.

    Raises:
        ValueError: other characters, or a length that no bytes have.
    """
    if not _DIGITS.fullmatch(text):
        raise ValueError("holds characters that base64 does not have")
    digits = text.rstrip("=").translate(_STANDARD)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64: {error}") from error
