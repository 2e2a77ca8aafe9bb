"""Nonces of the verifier: made without being kept, recognised by every replica with the secret, good for minutes."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Literal

from confcom.formats.arguments import decode_base64, encode_base64url
from confcom.tokens.azure import AzureError

LIFE = timedelta(minutes=5)
_RANDOM, _TIME, _MAC = 16, 8, 16
"""Bytes of each part: random ‖ u64 big-endian seconds of its end ‖ HMAC-SHA-256 over both, cut."""


def make_nonce(secret: bytes, now: datetime, random: bytes, context: bytes = b"") -> str:
    """A nonce (54 characters) of 16 random bytes, good until `now` + `LIFE`, and with this context alone."""
    body = random[:_RANDOM] + int((now + LIFE).timestamp()).to_bytes(_TIME)
    return encode_base64url(body + _mac(secret, body + context))


def check_nonce(nonce: str | None, secret: bytes, now: datetime) -> bytes:
    """The bytes of a nonce that was made with this secret and is still good, the same for every spelling in base64.

    Raises:
        AzureError: missing, of another service, or expired.
    """
    try:
        raw = decode_base64(nonce or "")
    except ValueError:
        raw = b""
    found = state_of_nonce(raw, secret, now)
    if found == "unknown":
        raise AzureError("'nonce' is none of this service's", advice="Get one with POST /nonces, and use it once.")
    if found == "expired":
        raise AzureError(f"'nonce' expired: it is good for {LIFE}", advice="Get another one with POST /nonces.")
    return raw


def state_of_nonce(
    raw: bytes, secret: bytes, now: datetime, context: bytes = b""
) -> Literal["good", "expired", "unknown"]:
    """Judge the bytes of a nonce; `unknown`: made with another secret or for another context."""
    body, mac = raw[: _RANDOM + _TIME], raw[_RANDOM + _TIME :]
    if len(raw) != _RANDOM + _TIME + _MAC or not hmac.compare_digest(_mac(secret, body + context), mac):
        return "unknown"
    # One that ends much later was made by a clock that was ahead, and would outlive the record of its use.
    return "good" if 0 <= int.from_bytes(body[_RANDOM:]) - now.timestamp() <= 2 * LIFE.total_seconds() else "expired"


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, body, hashlib.sha256)[:_MAC]
