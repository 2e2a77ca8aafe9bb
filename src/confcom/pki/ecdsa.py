"""ECDSA on P-256 with SHA-256, signatures and keys as they stand in quotes: raw big-endian r‖s and x‖y."""

from __future__ import annotations

from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from confcom.errors import SignatureError
from confcom.formats.der import INTEGER, SEQUENCE
from confcom.pki.der import P256, Certificate
from confcom.pki.memory import Memory

COORDINATE_SIZE = 32
"""Bytes of x, y, r and s."""

Known: TypeAlias = Memory[bool]
"""Remembers good signatures for their exact bytes, by key and digest of what is signed.

Who is trusted, what is revoked and what has expired is not remembered here, so it is judged each time.
"""

_SHA256 = ec.ECDSA(Prehashed(hashes.SHA256()))


def load_public_key(raw: bytes, *, step: str = "", what: str = "public key") -> ec.EllipticCurvePublicKey:
    """A P-256 key from x‖y, 64 bytes big-endian; a point off the curve is a `SignatureError`."""
    if len(raw) != 2 * COORDINATE_SIZE:
        raise SignatureError(f"{what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(raw)} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(P256, b"\x04" + raw)
    except ValueError as error:
        raise SignatureError(
            f"{what} is not a point on P-256", step=step, expected="a point on the curve", found=raw.hex()
        ) from error


def verify(
    key: ec.EllipticCurvePublicKey | Certificate,
    signature: bytes,
    digest: bytes,
    *,
    step: str,
    what: str,
    known: Known | None = None,
) -> None:
    """Check r‖s (64 bytes, big-endian) over the message with this SHA-256 (32 bytes); raises `SignatureError`."""
    if len(signature) != 2 * COORDINATE_SIZE:
        raise SignatureError(
            f"signature of {what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(signature)} bytes"
        )
    content = _integer(signature[:COORDINATE_SIZE]) + _integer(signature[COORDINATE_SIZE:])
    if not is_good(key, bytes((SEQUENCE, len(content))) + content, digest, known):
        raise SignatureError(
            f"signature of {what} does not match", step=step, expected="a signature by the key", found=signature.hex()
        )


def _integer(number: bytes) -> bytes:
    """The DER of an INTEGER, not negative: `encode_dss_signature` takes twice as long, with its first call 20 µs."""
    content = number.lstrip(b"\0")
    padding = b"" if content and content[0] < 0x80 else b"\0"
    return bytes((INTEGER, len(padding + content))) + padding + content


def is_good(
    key: ec.EllipticCurvePublicKey | Certificate, signature: bytes, digest: bytes, known: Known | None = None
) -> bool:
    """Whether the key, or that of the certificate, made the signature (DER) over the message with this SHA-256.

    Signatures by keys of certificates are looked up in `known`, and kept there if they are good.
    """
    statement = b""
    if isinstance(key, Certificate):
        statement, key = key.point + digest, key.public_key
    if known is not None and known.get(statement, signature):
        return True
    try:
        key.verify(signature, digest, _SHA256)
    except InvalidSignature:
        return False
    if known is not None and statement:
        known.add(statement, True, exact=signature)
    return True
