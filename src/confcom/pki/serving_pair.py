"""Certificates of a server for which there is no authority: a CA of its own, whose key is forgotten after one use."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE = timedelta(hours=1)
"""How far a certificate reaches back, for peers whose clocks are behind."""
MAX_PEM = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServingPair:
    """A server's certificate and its key, both PEM, with what has been read of them."""

    certificate: bytes
    key: bytes
    names: frozenset[str]
    """DNS names and addresses that the certificate is for."""
    made: datetime
    expires: datetime

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Self | None:
        """Read the pair; None if it is none: broken, or of two that do not belong together."""
        if not 0 < len(certificate) <= MAX_PEM or len(key) > MAX_PEM:
            return None
        try:
            found = x509.load_pem_x509_certificate(certificate)
            private = load_pem_private_key(key, password=None)
            fits = private.public_key() == found.public_key()
            alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, x509.ExtensionNotFound):
            return None
        if not fits:
            return None
        names = frozenset(str(name.value) for name in alternative)
        made = found.not_valid_before_utc + BACKDATE
        return cls(certificate, key, names, made, found.not_valid_after_utc)

    def is_issued_by(self, authority: bytes) -> bool:
        """Whether the CA (PEM) signed the certificate."""
        try:
            leaf = x509.load_pem_x509_certificate(self.certificate)
            leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def make_serving_pair(
    names: Sequence[str], *, now: datetime, lifetime: timedelta, common_name: str
) -> tuple[bytes, ServingPair]:
    """A new CA (PEM) and a pair of it, both valid from `BACKDATE` before `now` until `lifetime` after it."""
    authority_key, key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    serial = x509.random_serial_number()
    # With a number, because verifiers tell CAs by their names, and several are trusted at a time.
    issuer = _name(f"{common_name} CA {serial:x}"[:64])
    authority = (
        _builder(issuer, issuer, authority_key, now, lifetime, serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    leaf = (
        _builder(_name(common_name[:64]), issuer, key, now, lifetime, x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    return authority.public_bytes(Encoding.PEM), ServingPair(
        certificate=leaf.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        names=frozenset(names),
        made=leaf.not_valid_before_utc + BACKDATE,
        expires=leaf.not_valid_after_utc,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
