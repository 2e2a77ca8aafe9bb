"""ECDSA on P-256 with SHA-256, signatures and keys as they stand in quotes: raw big-endian r‖s and x‖y."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec


def load_public_key(raw: bytes, *, step: str = "", what: str = "public key") -> ec.EllipticCurvePublicKey:
    """A P-256 key from x‖y, 64 bytes big-endian."""
    raise NotImplementedError


def verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, step: str, what: str) -> None:
    """Check r‖s (64 bytes, big-endian) over SHA-256 of `message`; raises `SignatureError`."""
    raise NotImplementedError
