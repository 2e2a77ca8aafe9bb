"""The keys that sign tokens: PEM files of a folder, published before they sign and after they did.

Every file holds a private key and its certificate. A key signs once its file has been in the folder, and its
certificate valid, for the overlap; of several, the newest certificate does. Removing a file retires its key. Nothing is
signed by a key that is not published.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from confcom.errors import ConfigError
from confcom.tokens.jws import SigningKey

MAX_FILE = 64 << 10
"""Bytes of a key file."""
LIFETIME = timedelta(days=730)
"""Of a certificate that the service makes."""
SIMULATED_NAME = "confcom attestation (SIMULATED)"
HARDWARE_NAME = "confcom attestation"


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys as of one look at the folder, newest first."""

    keys: tuple[SigningKey, ...]
    signing: dict[str, SigningKey]

    def published(self) -> list[dict[str, object]]:
        """The JWKS: RSA keys first, because Gramine's client gives up at another kind before its own."""
        return [key.jwk() for key in sorted(self.keys, key=lambda key: key.algorithm != "RS256")]


def load_keys(folder: Path, now: datetime, *, overlap: timedelta, simulated: bool) -> SigningKeys:
    """Read the folder; an empty one gets an RSA and a P-256 key first.

    Raises:
        ConfigError: the folder or a file cannot be used, or a key is of the other world.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = sorted(folder.glob("*.pem"))
        if not files:
            files = [make_key(folder, kind, now, simulated=simulated) for kind in ("rsa", "ec")]
        keys = [SigningKey.from_pem(_read(file), str(file)) for file in files]
        # The time of the last change of the inode: a file that was made elsewhere, long ago, is new where it is put.
        put = [datetime.fromtimestamp(file.stat().st_ctime, UTC) for file in files]
    except OSError as error:
        raise ConfigError(
            f"the folder of signing keys cannot be used: {folder}: {error.strerror}",
            advice="Name a folder that can be read and written (--keys DIR).",
        ) from error
    for key, file in zip(keys, files, strict=True):
        if (_common_name(key.certificate) == SIMULATED_NAME) is not simulated:
            world = "simulated evidence" if simulated else "hardware"
            raise ConfigError(
                f"{file} is a signing key for another world: this instance judges {world}",
                advice="Give the instance a folder of keys of its own.",
            )
    since = {key.key_id: max(key.valid_from, time) for key, time in zip(keys, put, strict=True)}
    keys.sort(key=lambda key: key.valid_from, reverse=True)
    settled = [key for key in keys if since[key.key_id] + overlap <= now]
    return SigningKeys(tuple(keys), {name: _signing(settled, keys, name, now) for name in ("RS256", "ES256")})


def _signing(settled: Sequence[SigningKey], keys: Sequence[SigningKey], algorithm: str, now: datetime) -> SigningKey:
    """The newest that has been published long enough; the oldest where none has."""
    usable = [key for key in keys if key.algorithm == algorithm and key.certificate.not_valid_after_utc > now]
    if not usable:
        raise ConfigError(
            f"no valid {algorithm} key is among the signing keys",
            advice="Add a PEM file with a key and its certificate to the folder.",
        )
    return next((key for key in usable if key in settled), usable[-1])


def make_key(folder: Path, kind: str, now: datetime, *, simulated: bool) -> Path:
    """Make a key with its certificate and put the file into the folder in one step."""
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SIMULATED_NAME if simulated else HARDWARE_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(
        Encoding.PEM
    )
    target = folder / f"{now:%Y%m%dT%H%M%SZ}-{kind}.pem"
    part = target.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(target)
    return target


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file} has more than {MAX_FILE} bytes", advice="Remove it from the folder of signing keys.")
    return data


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
