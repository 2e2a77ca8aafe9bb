"""Settings of the certificate signer."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import msgspec

from confcom.errors import ConfigError
from confcom.pki.serving_pair import Authority
from confcom.protocols.certificate_requests import check_other_signers
from confcom.services.runtime.certificates import RotationPolicy
from confcom.services.runtime.status_page import parse_address

_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_DAY = 24 * 3600.0
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9._]{0,253}[a-z0-9])?")
DNS_SUFFIXES = ("svc", "svc.cluster.local")
"""The CA may certify names of Services alone: a stolen CA can impersonate no other host."""


class CertificateSignerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the certificate signer; the defaults are those for production."""

    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    policies: str = "/etc/confcom/certificate-policies"
    """Folder of policy files of `confcom verify`: NAMESPACE.SERVICEACCOUNT.toml, or NAMESPACE.toml for its other
    accounts. An account without one gets no certificate."""
    trust_domain: str = "cluster.local"
    """The first part of the names spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT."""
    approve_for: tuple[str, ...] = ()
    """Other signers for which requests are approved, after the same checks: of cert-manager,
    clusterissuers.cert-manager.io/NAME."""
    lifetime: Annotated[float, msgspec.Meta(ge=600, le=7 * _DAY)] = _DAY
    """Seconds that a certificate is valid at most; a request may ask for less."""
    collateral: str = "intel"
    """intel, pccs, thim, the URL of a collateral service, a folder, a collateral.json, or a store."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of the collateral service may be of."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's: all of them simulated, or none."""

    namespace: str = "confcom-system"
    """Namespace of the Secret and the ConfigMap."""
    secret: str = "confcom-certificate-signer-ca"  # noqa: S105 - a name
    """Secret in which the signer keeps its CA; nothing else may read it."""
    config_map: str = "confcom-attested-pods-ca"
    """ConfigMap that publishes the CA's certificates, under ca-certificates.crt."""
    ca_lifetime: _Seconds = 730 * _DAY
    """Seconds that a CA is valid."""
    ca_renew_before: _Seconds = 90 * _DAY
    """Seconds before its end at which its successor is made and published."""
    ca_overlap: _Seconds = 14 * _DAY
    """Seconds that a successor is published before it signs, and a predecessor after it did."""
    ca_look_every: _Seconds = 10.0
    """Seconds between two looks at Secret and ConfigMap."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=2)] = 20
    """Requests of one pod in a minute that are looked at; a certificate takes two. Others are denied."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Requests that are worked on at a time."""

    def check(self) -> None:
        """Check fields against each other: `ConfigError`."""
        if self.http:
            parse_address(self.http)
        check_other_signers(self.approve_for, simulated=False)
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ConfigError(f"{self.trust_domain!r} is no trust domain", advice="Write it as cluster.local.")
        if self.ca_renew_before >= self.ca_lifetime or 4 * self.ca_overlap > self.ca_renew_before:
            raise ConfigError(
                "a CA must be renewed within its lifetime, and four overlaps before its end at the latest",
                advice="Leave ca_lifetime, ca_renew_before and ca_overlap as they are, or shorten the last.",
            )
        if self.ca_overlap < self.lifetime:
            raise ConfigError(
                "certificates would outlive the CA that signed them: ca_overlap is less than lifetime",
                advice="Shorten lifetime, or lengthen ca_overlap.",
            )

    def rotation(self, common_name: str) -> RotationPolicy:
        """When the CA is replaced."""
        times = (self.ca_lifetime, self.ca_renew_before, self.ca_overlap)
        lifetime, renew_before, overlap = (timedelta(seconds=seconds) for seconds in times)
        return RotationPolicy(DNS_SUFFIXES, lifetime, renew_before, overlap, common_name, Authority)
