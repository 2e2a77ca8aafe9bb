"""Certificates that are issued here: of servers for which there is no authority, of attested pods, and of their CAs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confcom.errors import ConfigError, FormatError

BACKDATE = timedelta(hours=1)
"""How far a certificate reaches back, for peers with clocks that are behind."""
MAX_PEM = 64 * 1024
_LABEL = r"[A-Za-z0-9_](?:[-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


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
        found = _certificate_of(certificate, key, x509.SubjectAlternativeName)
        if found is None:
            return None
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
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


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key, both PEM, with what has been read of them."""

    certificate: bytes
    key: bytes
    names: frozenset[str]
    """DNS names below which its certificates may have names; empty: any."""
    made: datetime
    expires: datetime

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Self | None:
        """Read it; None if it is none: broken, no CA, or of two that do not belong together."""
        found = _certificate_of(certificate, key, x509.BasicConstraints)
        if found is None or not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return None
        return cls._of(found, certificate, key)

    @classmethod
    def _of(cls, found: x509.Certificate, certificate: bytes, key: bytes) -> Self:
        names: frozenset[str] = frozenset()
        with suppress(x509.ExtensionNotFound):
            allowed = found.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or ()
            names = frozenset(str(name.value) for name in allowed)
        return cls(certificate, key, names, found.not_valid_before_utc + BACKDATE, found.not_valid_after_utc)

    def is_issued_by(self, authority: bytes) -> bool:
        """Whether it is this CA (PEM): it signed itself."""
        return self.certificate.strip() == authority.strip()

    @classmethod
    def make(cls, common_name: str, *, now: datetime, lifetime: timedelta, names: Sequence[str] = ()) -> Self:
        """A new one, valid until `lifetime` after `now`, and for the DNS `names` only if there are any."""
        key, serial = generate_private_key(SECP256R1()), x509.random_serial_number()
        # With a number, because verifiers distinguish CAs by their names, and several are trusted at a time.
        name = _name(f"{common_name} CA {serial:x}"[:64])
        builder = (
            certificate_builder(name, name, key.public_key(), now - BACKDATE, now + lifetime, serial, ca=True)
            .add_extension(key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if names:
            allowed = x509.NameConstraints([x509.DNSName(one) for one in names], excluded_subtrees=None)
            builder = builder.add_extension(allowed, critical=True)
        made = builder.sign(key, SHA256())
        return cls._of(made, made.public_bytes(Encoding.PEM), _private(key))

    def issue(self, names: Sequence[str], *, now: datetime, lifetime: timedelta, common_name: str) -> ServingPair:
        """A server's certificate that ends `lifetime` after `now`, or with the CA."""
        key = generate_private_key(SECP256R1())
        own = x509.load_pem_x509_certificate(self.certificate)
        signer: Any = load_pem_private_key(self.key, password=None)  # of the kinds of keys that sign certificates
        expires = min(now + lifetime, self.expires)
        subject, public = _name(common_name[:64]), key.public_key()
        leaf = (
            certificate_builder(subject, own.subject, public, now - BACKDATE, expires)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
            .add_extension(authority_key_id(own), critical=False)
            .sign(signer, SHA256())
        )
        return ServingPair(
            certificate=leaf.public_bytes(Encoding.PEM),
            key=_private(key),
            names=frozenset(names),
            made=leaf.not_valid_before_utc + BACKDATE,
            expires=leaf.not_valid_after_utc,
        )


Pair: TypeAlias = ServingPair | Authority
"""What a server keeps in its Secret and replaces in time."""


def make_serving_pair(
    names: Sequence[str], *, now: datetime, lifetime: timedelta, common_name: str
) -> tuple[bytes, ServingPair]:
    """A new CA (PEM), the key of which is forgotten, and a pair of it, both valid for the same time."""
    authority = Authority.make(common_name, now=now, lifetime=lifetime)
    return authority.certificate, authority.issue(names, now=now, lifetime=lifetime, common_name=common_name)


def authorities_in(bundle: bytes) -> tuple[bytes, ...]:
    """The certificates (PEM each) in a bundle; what stands between them is left out."""
    return tuple(_BEGIN + text.partition(_END)[0] + _END + b"\n" for text in bundle.split(_BEGIN)[1:] if _END in text)


def expiry_of(certificate: bytes) -> datetime | None:
    """When a certificate (PEM) expires; None if it is none."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        return None


def _certificate_of(certificate: bytes, key: bytes, extension: type[x509.ExtensionType]) -> x509.Certificate | None:
    """The certificate; None if it is broken, without that extension, or of another key."""
    if not 0 < len(certificate) <= MAX_PEM or len(key) > MAX_PEM:
        return None
    try:
        found = x509.load_pem_x509_certificate(certificate)
        fits = load_pem_private_key(key, password=None).public_key() == found.public_key()
        found.extensions.get_extension_for_class(extension)
    except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return None
    return found if fits else None


def _private(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the issuer calls its key: others than we make may have another way to name it."""
    try:
        found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    begin: datetime,
    end: datetime,
    serial: int | None = None,
    *,
    ca: bool = False,
) -> x509.CertificateBuilder:
    """A certificate with its basic constraints; a CA may sign no other CA. `serial` is random by default."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def service_names(service: str, namespace: str, hosts: str = "", *, setting: str = "") -> tuple[str, ...]:
    """The names of a Service's certificate, and `hosts`: further names and addresses, with commas between.

    Addresses as certificates give them back, so that a certificate can be compared with them. `ConfigError` with the
    `setting` of the hosts for what is neither.
    """
    own = _host(f"{service}.{namespace}.svc")
    further = (word for part in hosts.split(",") if (word := part.strip()))
    return (own, f"{own}.cluster.local", *(_host(word, setting) for word in further))


def _host(text: str, setting: str = "") -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if _DNS.fullmatch(text) is None:
        raise ConfigError(f"{text[:80]!r} is neither a name nor an address", setting=setting)
    return text


def general_name(name: str) -> x509.GeneralName:
    """A DNS name, or an IP address, as certificates carry it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """What the key of a CA, or of a server or client, is for."""
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


# Certificates of attested pods: keys that are certified, and what a certificate says.
#
# The names are given, never taken from a request. A subject has no common name, which old TLS stacks take for a host.

POD_BACKDATE = timedelta(minutes=5)
"""How far the certificate of a pod reaches back."""
RSA_SIZES = range(2048, 4096 + 1)
RSA_EXPONENT = 65537
_CURVES = (ec.SECP256R1, ec.SECP384R1)
POD_KEYS = "P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits with the exponent 65537"


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


def check_pod_key(public_key: bytes) -> None:
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
    advice = f"Make a key that is {POD_KEYS}."
    return FormatError(message, structure="certification request", field="key", advice=advice)


def issue_to_pod(
    authority: Authority, wanted: CertifiedPod, *, now: datetime, lifetime: timedelta
) -> IssuedCertificate:
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
    key: Any = load_der_public_key(wanted.public_key)  # of the kinds that `check_pod_key` passes
    made = (
        certificate_builder(x509.Name(subject), own.subject, key, now - POD_BACKDATE, expires)
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
