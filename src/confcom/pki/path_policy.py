"""What X.509 extensions the certificates of Intel's PKI must have (dcap.md §2); they are no web certificates.

Every certificate carries authority and subject key identifier, CRL distribution points, key usage and basic
constraints. A critical extension beyond these is refused by the path building itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.verification import Criticality, ExtensionPolicy

if TYPE_CHECKING:
    from cryptography.x509.verification import Policy


def _leaf_constraints(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if found.ca:
        raise ValueError("a leaf must not be a CA")


def _leaf_key_usage(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.digital_signature or found.key_cert_sign or found.crl_sign:
        raise ValueError("the key of a leaf signs data, not certificates or revocation lists")


def _ca_constraints(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("is not a CA")


def _ca_key_usage(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.key_cert_sign or not found.crl_sign:
        raise ValueError("the key of a CA signs certificates and revocation lists")


def _with_identifiers(policy: ExtensionPolicy) -> ExtensionPolicy:
    for extension in (x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier, x509.CRLDistributionPoints):
        policy = policy.require_present(extension, Criticality.NON_CRITICAL, None)
    return policy


CA_POLICY = (
    _with_identifiers(ExtensionPolicy.permit_all())
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _ca_constraints)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _ca_key_usage)
)
"""For every certificate above the leaf, the root included."""

_LEAF_POLICY = (
    _with_identifiers(ExtensionPolicy.permit_all())
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _leaf_constraints)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _leaf_key_usage)
)

LEAF_POLICIES = {"pck": _LEAF_POLICY, "tcb-signing": _LEAF_POLICY, "ca": CA_POLICY}
"""For the lowest certificate, by kind of chain; that of a CRL issuer's chain is a CA itself."""
