"""Roots are known by their key; only Intel's stands for real hardware."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import pki_builder as intel
from confcom.errors import ConfigError, FormatError
from confcom.pki.chain import INTEL_SGX_ROOT_CA, TrustRoot, TrustRoots


def test_intels_root_is_the_published_one() -> None:
    assert hashlib.sha256(INTEL_SGX_ROOT_CA.certificate_der).hexdigest().startswith("44a0196b")
    # Intel's root_key_id: SHA-384 of the key.
    assert hashlib.sha384(INTEL_SGX_ROOT_CA.public_key).hexdigest() == (
        "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993"
    )
    assert not INTEL_SGX_ROOT_CA.simulated
    assert TrustRoots.intel().roots == (INTEL_SGX_ROOT_CA,)


def test_a_root_of_ones_own_is_simulated() -> None:
    root = TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE))
    assert root.simulated
    assert root.name.startswith("simulated root ")
    assert TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE), name="ci").name == "ci"


def test_no_root_can_claim_or_hide_that_it_is_intels() -> None:
    with pytest.raises(ConfigError):
        TrustRoot("Intel SGX Root CA", intel.ROOT_CERTIFICATE.build(), simulated=False)
    with pytest.raises(ConfigError):
        TrustRoot("mine", INTEL_SGX_ROOT_CA.certificate_der, simulated=True)


def test_a_certificate_that_did_not_sign_itself_is_no_root() -> None:
    with pytest.raises(ConfigError, match="self-signed"):
        TrustRoot.from_pem(intel.pem(intel.PLATFORM_CERTIFICATE))
    with pytest.raises(ConfigError, match="self-signed"):
        TrustRoot.from_pem(intel.pem(replace(intel.ROOT_CERTIFICATE, key=intel.STRANGER)))


def test_a_root_on_another_curve_is_no_root() -> None:
    key = ec.derive_private_key(7, ec.SECP384R1())
    with pytest.raises(ConfigError):
        TrustRoot.from_pem(intel.pem(replace(intel.ROOT_CERTIFICATE, key=key, signer=key)))


def test_a_file_with_a_chain_is_no_root() -> None:
    with pytest.raises(ConfigError, match="found 2"):
        TrustRoot.from_pem(intel.pem(intel.PLATFORM_CERTIFICATE, intel.ROOT_CERTIFICATE))
    with pytest.raises(FormatError):
        TrustRoot.from_pem(b"not PEM")


def test_roots_are_found_by_key() -> None:
    own = TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE))
    roots = TrustRoots((INTEL_SGX_ROOT_CA, own))
    assert roots.with_public_key(own.public_key) is own
    assert roots.with_public_key(INTEL_SGX_ROOT_CA.public_key) is INTEL_SGX_ROOT_CA
    assert TrustRoots.intel().with_public_key(own.public_key) is None


def test_trusting_nobody_is_a_mistake() -> None:
    with pytest.raises(ConfigError):
        TrustRoots(())


@pytest.mark.vectors
def test_every_certificate_of_intels_key_is_real_whatever_its_end(vectors: Path) -> None:
    for path in sorted((vectors / "real").glob("[st]*/root_ca.pem")):
        root = TrustRoot.from_pem(path.read_bytes())
        assert root.public_key == INTEL_SGX_ROOT_CA.public_key, path
        assert not root.simulated, path
