"""Trusted roots: keys, given as values. Intel's is built in; every other root is a simulated one.

The key is pinned, not the certificate: two root certificates of the same key are in use, and a third may come.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from confcom.errors import CertificateError, ConfigError
from confcom.formats.arguments import checked_bytes, checked_type
from confcom.pki.certificate import check_p256, load_certificate, parse_certificates, remember
from confcom.pki.der import Certificate
from confcom.pki.ecdsa import is_good

INTEL_ROOT_PUBLIC_KEY = bytes.fromhex(
    "040ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5"
    "67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"
)
"""The key of Intel's SGX root, 65 bytes (dcap.md §2): the one thing that makes evidence real."""

_INTEL_SGX_ROOT_CA_PEM = b"""\
-----BEGIN CERTIFICATE-----
MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIw
aDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENv
cnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJ
BgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgG
A1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0
aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT
AlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi7
1OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOB
uzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJ
MEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50
ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SV
Ur9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYI
KoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwg
AiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI=
-----END CERTIFICATE-----
"""


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A root certificate with a trusted key. `public_key` is the uncompressed point, 65 bytes.

    Only Intel's key stands for real hardware: a root that claims otherwise is a `ConfigError`.
    """

    name: str
    certificate_der: bytes = field(repr=False)
    simulated: bool
    certificate: Certificate = field(init=False, repr=False, compare=False)
    public_key: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        der = checked_bytes(self.certificate_der, "certificate of the trust root")
        certificate = load_certificate(der, structure="trust root", field="certificate")
        try:
            check_p256(certificate)
            own = is_good(certificate, certificate.signature, certificate.signed_digest)
        except CertificateError:
            own = False
        if not own or certificate.issuer != certificate.subject:
            raise ConfigError(
                f"{certificate.common_name or 'this certificate'} cannot be a trust root: "
                "it is not a self-signed certificate of a P-256 key",
                advice="Name the root certificate itself, not one that it issued.",
            )
        remember((certificate,))
        object.__setattr__(self, "certificate", certificate)
        object.__setattr__(self, "public_key", certificate.point)
        if self.simulated != (self.public_key != INTEL_ROOT_PUBLIC_KEY):
            raise ConfigError(f"trust root {self.name}: only Intel's key stands for real hardware")

    def __reduce__(self) -> tuple[Any, ...]:
        return TrustRoot, (self.name, self.certificate_der, self.simulated)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        # Here, because it takes a twelfth of all that verifying quotes imports.
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.in_full().public_bytes(Encoding.PEM)

    @classmethod
    def from_pem(cls, data: bytes, *, name: str | None = None) -> TrustRoot:
        """A root from its PEM certificate; only Intel's key gives a root that is not simulated."""
        checked_bytes(data, "root certificate")
        ders = parse_certificates(data, structure="trust root")
        if len(ders) != 1:
            raise ConfigError(
                f"a trust root is one certificate, found {len(ders)}",
                advice="Give a file that holds the root certificate alone.",
            )
        if load_certificate(ders[0], structure="trust root", field="certificate").point == INTEL_ROOT_PUBLIC_KEY:
            return cls(name or "Intel SGX Root CA", ders[0], simulated=False)
        return cls(name or f"simulated root {hashlib.sha256(ders[0]).hexdigest()[:16]}", ders[0], simulated=True)


INTEL_SGX_ROOT_CA = TrustRoot.from_pem(_INTEL_SGX_ROOT_CA_PEM)
"""Intel's root in its certificate valid to 2049-12-31."""


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The roots that one verification accepts; none at all is a `ConfigError`."""

    roots: tuple[TrustRoot, ...]

    def __post_init__(self) -> None:
        for root in checked_type(self.roots, tuple, "trust roots"):
            checked_type(root, TrustRoot, "trust root", "; TrustRoot.from_pem(data) makes one")
        if not self.roots:
            raise ConfigError("no trust root is given", advice="Trust Intel's root, or name a root with --trust-root.")

    @classmethod
    def intel(cls) -> TrustRoots:
        """Intel's root alone: real hardware."""
        return cls((INTEL_SGX_ROOT_CA,))

    def with_public_key(self, public_key: bytes) -> TrustRoot | None:
        """The root of that key (65 bytes), None when it is not trusted."""
        for root in self.roots:
            if root.public_key == public_key:
                return root
        return None


def simulated_world(roots: TrustRoots) -> bool:
    """Whether every root is simulated; an instance of both worlds is a `ConfigError`."""
    kinds = {root.simulated for root in roots.roots}
    if len(kinds) > 1:
        raise ConfigError(
            "an instance judges real or simulated evidence, never both",
            advice="Run two instances, each with its own keys and URL.",
        )
    return kinds == {True}
