"""Keys and bytes derived from a seed: the same seed gives the same world, byte for byte.

Derivation is HKDF-SHA256 with a label per purpose. ECDSA signatures are deterministic (RFC 6979), so that quotes,
certificates and signed documents are equal on every run.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.errors import ConfigError

MIN_SEED = 16
"""Bytes. Shorter seeds could be guessed from a published certificate."""

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SALT = b"confcom simulated platform, version 1"
_ECDSA = ec.ECDSA(SHA256(), deterministic_signing=True)


def check_seed(seed: bytes) -> None:
    """Refuse seeds of fewer than 16 or more than 64 bytes."""
    if not MIN_SEED <= len(seed) <= 64:
        raise ConfigError(f"a seed has {MIN_SEED} to 64 bytes, found {len(seed)}", advice="Use 32 random bytes.")


def derive_bytes(secret: bytes, label: str, size: int = 32) -> bytes:
    """`size` bytes that only who knows the secret can compute, another string for every label."""
    return HKDF(algorithm=SHA256(), length=size, salt=_SALT, info=label.encode()).derive(secret)


def derive_p256_key(secret: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key; 48 derived bytes, reduced, leave no measurable bias (FIPS 186-5, A.2.1)."""
    scalar = int.from_bytes(derive_bytes(secret, label, 48), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x‖y, 64 bytes, big-endian."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256 as quotes and signed JSON carry it: r‖s, 64 bytes, big-endian."""
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@lru_cache(maxsize=64)
def _cmac(key: bytes) -> CMAC:
    return CMAC(AES(key))


def aes_cmac(key: bytes, message: bytes) -> bytes:
    """AES-128-CMAC, 16 bytes (NIST SP 800-38B)."""
    mac = _cmac(key).copy()  # the same few keys, thousands of times a second
    mac.update(message)
    return mac.finalize()
