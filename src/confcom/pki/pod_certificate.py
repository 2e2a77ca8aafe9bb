"""Certificates of attested pods: keys that are certified, and what a certificate says.

The names are given, never taken from a request. A subject has no common name, which old TLS stacks take for a host.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confcom.errors import FormatError
from confcom.pki.serving_pair import Authority, authority_key_id, certificate_builder, key_usage

BACKDATE = timedelta(minutes=5)
"""How far a certificate reaches back, for peers with clocks that are behind."""
RSA_SIZES = range(2048, 4096 + 1)
RSA_EXPONENT = 65537
_CURVES = (ec.SECP256R1, ec.SECP384R1)
KEYS = "P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits with the exponent 65537"


class CertifiedPod(NamedTuple):
    """What is certified. `public_key` is a SubjectPublicKeyInfo in DER, `uri` and `dns_names` the names."""

    public_key: bytes
    organization: str
    pod_uid: str
    uri: str
    dns_names: Sequence[str]
    server: bool
    client: bool


class IssuedCertificate(NamedTuple):
    """A certificate in PEM, and what the audit record says of it."""

    pem: bytes
    serial_number: int
    expires: datetime


def check_key(public_key: bytes) -> None:
    """`FormatError` for a key that is not certified; no other key is ever used for a computation."""
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(f"cannot be read: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size in RSA_SIZES and key.public_numbers().e == RSA_EXPONENT:
            return
        raise _refused(f"is RSA of {key.key_size} bits, or with another exponent")
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _refused("is of another kind")


def _refused(message: str) -> FormatError:
    advice = f"Make a key that is {KEYS}."
    return FormatError(message, structure="certification request", field="key", advice=advice)


def issue(authority: Authority, wanted: CertifiedPod, *, now: datetime, lifetime: timedelta) -> IssuedCertificate:
    """A certificate that ends `lifetime` after `now`, or with the CA."""
    own, signer = _loaded(authority)
    expires = min(now + lifetime, authority.expires)
    subject = (
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, wanted.organization),
        x509.NameAttribute(NameOID.SERIAL_NUMBER, wanted.pod_uid[:64]),
    )
    usages = [
        usage
        for usage, asked in ((ExtendedKeyUsageOID.SERVER_AUTH, wanted.server),
                             (ExtendedKeyUsageOID.CLIENT_AUTH, wanted.client))
        if asked
    ]  # fmt: skip
    key: Any = load_der_public_key(wanted.public_key)  # of the kinds that `check_key` passes
    made = (
        certificate_builder(x509.Name(subject), own.subject, key, now - BACKDATE, expires)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(alternative_names(wanted.uri, wanted.dns_names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority_key_id(own), critical=False)
        .sign(signer, SHA256())
    )
    return IssuedCertificate(made.public_bytes(Encoding.PEM), made.serial_number, made.not_valid_after_utc)


def alternative_names(uri: str, dns_names: Sequence[str]) -> x509.SubjectAlternativeName:
    """The extension with a pod's names, of which there is one encoding alone."""
    return x509.SubjectAlternativeName([*map(x509.DNSName, dns_names), x509.UniformResourceIdentifier(uri)])


@lru_cache(4)
def _loaded(authority: Authority) -> tuple[x509.Certificate, Any]:
    """The CA's certificate and key, read once."""
    return x509.load_pem_x509_certificate(authority.certificate), load_pem_private_key(authority.key, password=None)
