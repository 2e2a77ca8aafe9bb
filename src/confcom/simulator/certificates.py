"""Certificates and revocation lists of the simulated authority: state that tests change, bytes made from it on demand.

Every certificate has the extensions that Intel's library demands (key identifiers, CRL distribution point, key usage,
basic constraints). Signatures are deterministic: equal state gives equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

ORGANIZATION = "confcom simulated platform"
DISTRIBUTION = "https://simulated.confcom.invalid/sgx/certification/v4"
"""Where the distribution points lead: a name that no resolver knows."""

_SECOND = timedelta(seconds=1)
_REMEMBERED = 256
"""Certificates that a CA keeps, so that it does not sign the same again."""


@dataclass(slots=True)
class SimulatedCertificate:
    """The content of a certificate but for its issuer. `path_length` None means an end-entity certificate."""

    common_name: str
    public_key: EllipticCurvePublicKey
    not_before: datetime
    not_after: datetime
    distribution_point: str
    path_length: int | None = None
    extra: tuple[x509.UnrecognizedExtension, ...] = ()

    @property
    def serial_number(self) -> int:
        """159 bits from the public key, so that a certificate renewed for the same key keeps its number."""
        return int.from_bytes(hashlib.sha256(_point(self.public_key)).digest()[:20], "big") >> 1

    @property
    def state(self) -> Hashable:
        """All that the certificate will say, to compare."""
        return (
            self.common_name,
            self.serial_number,
            self.not_before,
            self.not_after,
            self.distribution_point,
            self.path_length,
            self.extra,
        )

    def expire(self, at: datetime) -> None:
        """End the validity one second before `at`."""
        self.not_after = at - _SECOND


@dataclass(slots=True)
class RevocationList:
    """A CRL: its window, its number, and the serial numbers on it with the time of their revocation."""

    this_update: datetime
    next_update: datetime
    number: int = 1
    revoked: dict[int, datetime] = field(default_factory=dict)

    def revoke(self, certificate: SimulatedCertificate, at: datetime) -> None:
        """Put a certificate on the list."""
        self.revoked[certificate.serial_number] = at
        self.number += 1

    def expire(self, at: datetime) -> None:
        """End the window one second before `at`."""
        self.next_update = at - _SECOND


@dataclass(slots=True)
class SimulatedCa:
    """A CA: its key, the content of its own certificate, and its CRL."""

    key: EllipticCurvePrivateKey = field(repr=False)
    own: SimulatedCertificate
    crl: RevocationList
    _issued: dict[Hashable, tuple[EllipticCurvePrivateKey, x509.Certificate]] = field(default_factory=dict, repr=False)

    def issue(self, subject: SimulatedCertificate) -> x509.Certificate:
        """The certificate for that state, signed by this CA; of its own state: the self-signed one."""
        # Platforms ask for their chain before every quote; as long as nothing changed, it need not be signed again.
        state = (self.own.common_name, self.own.serial_number, subject.state)
        key, certificate = self._issued.get(state, (None, None))
        if certificate is None or key is not self.key:
            if len(self._issued) >= _REMEMBERED:
                self._issued.clear()
            certificate = self._sign(subject)
            self._issued[state] = (self.key, certificate)
        return certificate

    def _sign(self, subject: SimulatedCertificate) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject.common_name))
            .issuer_name(_name(self.own.common_name))
            .public_key(subject.public_key)
            .serial_number(subject.serial_number)
            .not_valid_before(subject.not_before)
            .not_valid_after(subject.not_after)
        )
        for extension, critical in self._extensions(subject):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, SHA256(), ecdsa_deterministic=True)

    def revocation_list(self) -> x509.CertificateRevocationList:
        """The CRL as it stands now."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.own.common_name))
            .last_update(self.crl.this_update)
            .next_update(self.crl.next_update)
            .add_extension(x509.CRLNumber(self.crl.number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.own.public_key), critical=False)
        )
        for serial_number, since in sorted(self.crl.revoked.items()):
            builder = builder.add_revoked_certificate(_entry(serial_number, since))
        return builder.sign(self.key, SHA256(), ecdsa_deterministic=True)

    def _extensions(self, subject: SimulatedCertificate) -> list[tuple[x509.ExtensionType, bool]]:
        point = x509.DistributionPoint(
            [x509.UniformResourceIdentifier(subject.distribution_point)],
            relative_name=None,
            reasons=None,
            crl_issuer=None,
        )
        authority = subject.path_length is not None
        return [
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.own.public_key), False),
            (x509.CRLDistributionPoints([point]), False),
            (x509.SubjectKeyIdentifier.from_public_key(subject.public_key), False),
            (_key_usage(authority=authority), True),
            (x509.BasicConstraints(ca=authority, path_length=subject.path_length), True),
            *((extension, False) for extension in subject.extra),
        ]


def pem(*certificates: x509.Certificate) -> bytes:
    """A PEM chain in the order given."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def der(item: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """The DER of a certificate or CRL."""
    return item.public_bytes(Encoding.DER)


def _entry(serial_number: int, since: datetime) -> x509.RevokedCertificate:
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(serial_number)
        .revocation_date(since)
        .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        .build()
    )


def _point(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Nowhere"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Simulated"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
