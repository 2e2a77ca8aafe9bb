"""ECDSA on P-256 with SHA-256, signatures and keys as they stand in quotes: raw big-endian r‖s and x‖y."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confcom.errors import SignatureError

COORDINATE_SIZE = 32
"""Bytes of x, y, r and s."""

_SHA256 = ec.ECDSA(hashes.SHA256())


def load_public_key(raw: bytes, *, step: str = "", what: str = "public key") -> ec.EllipticCurvePublicKey:
    """A P-256 key from x‖y, 64 bytes big-endian; a point off the curve is a `SignatureError`."""
    if len(raw) != 2 * COORDINATE_SIZE:
        raise SignatureError(f"{what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(raw)} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw)
    except ValueError as error:
        raise SignatureError(
            f"{what} is not a point on P-256", step=step, expected="a point on the curve", found=raw.hex()
        ) from error


def verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, step: str, what: str) -> None:
    """Check r‖s (64 bytes, big-endian) over SHA-256 of `message`; raises `SignatureError`."""
    if len(signature) != 2 * COORDINATE_SIZE:
        raise SignatureError(
            f"signature of {what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(signature)} bytes"
        )
    r = int.from_bytes(signature[:COORDINATE_SIZE], "big")
    s = int.from_bytes(signature[COORDINATE_SIZE:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, _SHA256)
    except InvalidSignature:
        # From nothing: the library's exception has no message that would help.
        raise SignatureError(
            f"signature of {what} does not match", step=step, expected="a signature by the key", found=signature.hex()
        ) from None
