"""Nonces of the verifier: made without being kept, recognised by any replica that has the keys, good for minutes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from confcom.formats.text import decode_base64, encode_base64url
from confcom.tokens.azure import AzureError
from confcom.tokens.jws import SigningKey

LIFE = timedelta(minutes=5)
_RANDOM, _TIME, _MAC = 16, 8, 16
"""Bytes of each part: random ‖ u64 big-endian seconds of its end ‖ HMAC-SHA-256 over both, cut."""


def make_nonce(key: SigningKey, now: datetime, random: bytes) -> str:
    """A nonce (54 characters) of 16 random bytes, good until `now` + `LIFE`."""
    body = random[:_RANDOM] + int((now + LIFE).timestamp()).to_bytes(_TIME)
    return encode_base64url(body + _mac(key, body))


def check_nonce(nonce: str | None, keys: Sequence[SigningKey], now: datetime) -> None:
    """Accept a nonce of one of the keys that is still good.

    Raises:
        AzureError: missing, of another service, or expired.
    """
    try:
        raw = decode_base64(nonce or "")
    except ValueError:
        raw = b""
    body, mac = raw[: _RANDOM + _TIME], raw[_RANDOM + _TIME :]
    if len(raw) != _RANDOM + _TIME + _MAC or not any(hmac.compare_digest(_mac(key, body), mac) for key in keys):
        raise AzureError("'nonce' is none of this service's", advice="Get one with POST /nonces, and use it once.")
    if int.from_bytes(body[_RANDOM:]) < now.timestamp():
        raise AzureError(f"'nonce' expired: it is good for {LIFE}", advice="Get another one with POST /nonces.")


def _mac(key: SigningKey, body: bytes) -> bytes:
    der = key.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    secret = HKDF(hashes.SHA256(), 32, None, b"confcom attestation nonce").derive(der)
    return hmac.new(secret, body, hashlib.sha256).digest()[:_MAC]
