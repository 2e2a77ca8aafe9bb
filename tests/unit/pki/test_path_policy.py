"""Every extension of Intel's profile is needed, and no other critical one is tolerated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

import pki_builder as intel
from confcom.errors import CertificateError
from confcom.pki.chain import ChainKind, TrustRoot, TrustRoots, verify_chain

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))
NEEDED = [
    x509.AuthorityKeyIdentifier,
    x509.CRLDistributionPoints,
    x509.SubjectKeyIdentifier,
    x509.KeyUsage,
    x509.BasicConstraints,
]


def _refuse(pck=intel.PCK_CERTIFICATE, ca=intel.PLATFORM_CERTIFICATE, root=intel.ROOT_CERTIFICATE) -> None:
    with pytest.raises(CertificateError):
        verify_chain(intel.pem(pck, ca, root), roots=OWN, kind="pck", step="(3)")


@pytest.mark.parametrize("extension", NEEDED)
def test_every_certificate_needs_every_extension(extension: type) -> None:
    _refuse(pck=replace(intel.PCK_CERTIFICATE, without=(extension,)))
    _refuse(ca=replace(intel.PLATFORM_CERTIFICATE, without=(extension,)))
    _refuse(root=replace(intel.ROOT_CERTIFICATE, without=(extension,)))


def test_a_critical_extension_that_nobody_knows_is_refused() -> None:
    _refuse(pck=replace(intel.PCK_CERTIFICATE, critical_stranger=True))
    _refuse(ca=replace(intel.PLATFORM_CERTIFICATE, critical_stranger=True))
    _refuse(root=replace(intel.ROOT_CERTIFICATE, critical_stranger=True))


def test_a_pck_certificate_is_no_ca() -> None:
    _refuse(pck=replace(intel.PCK_CERTIFICATE, ca=True))
    leaf_usage = {"digital_signature": True, "key_cert_sign": False, "crl_sign": False}
    _refuse(pck=replace(intel.PCK_CERTIFICATE, ca=True, key_usage=leaf_usage))


def test_a_key_does_what_its_usage_says() -> None:
    _refuse(pck=replace(intel.PCK_CERTIFICATE, key_usage={"digital_signature": False}))
    _refuse(pck=replace(intel.PCK_CERTIFICATE, key_usage={"key_cert_sign": True}))
    _refuse(ca=replace(intel.PLATFORM_CERTIFICATE, key_usage={"key_cert_sign": False}))
    _refuse(ca=replace(intel.PLATFORM_CERTIFICATE, key_usage={"crl_sign": False}))
    _refuse(root=replace(intel.ROOT_CERTIFICATE, key_usage={"key_cert_sign": False}))


def test_an_issuer_must_be_a_ca() -> None:
    _refuse(
        ca=replace(
            intel.PLATFORM_CERTIFICATE, ca=False, path_length=None, key_usage={"key_cert_sign": True, "crl_sign": True}
        )
    )


def test_a_path_is_no_longer_than_its_root_allows() -> None:
    _refuse(root=replace(intel.ROOT_CERTIFICATE, path_length=0))


@pytest.mark.parametrize(
    ("kind", "leaf"), [("ca", intel.PLATFORM_CERTIFICATE), ("tcb-signing", intel.SIGNING_CERTIFICATE)]
)
def test_the_leaf_of_every_kind_has_the_usage_of_that_kind(kind: ChainKind, leaf: intel.Certificate) -> None:
    verify_chain(intel.pem(leaf), roots=OWN, kind=kind, step="(1)")
    wrong = replace(leaf, ca=not leaf.ca, path_length=None)
    with pytest.raises(CertificateError):
        verify_chain(intel.pem(wrong), roots=OWN, kind=kind, step="(1)")


def test_who_issues_revocation_lists_is_a_ca() -> None:
    usage = {"key_cert_sign": True, "crl_sign": True}
    no_ca = replace(intel.PLATFORM_CERTIFICATE, ca=False, path_length=None, key_usage=usage)
    with pytest.raises(CertificateError):
        verify_chain(intel.pem(no_ca), roots=OWN, kind="ca", step="(1)")
