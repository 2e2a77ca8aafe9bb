"""What is remembered is bounded, given out for exact bytes alone, and cannot be flooded by variants or strangers."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

import pki_builder as intel
from confcom.errors import FormatError
from confcom.pki.certificate import load_certificate, load_chain
from confcom.pki.chain import TrustRoot, TrustRoots, verify_chain
from confcom.pki.proof import Memory, is_good

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))


def test_a_value_is_for_its_exact_bytes_and_the_latest_replaces_the_others() -> None:
    memory = Memory[int](4)
    memory.add(b"statement", 1, exact=b"one")
    assert memory.get(b"statement", b"one") == 1
    assert memory.get(b"statement", b"two") is None
    memory.add(b"statement", 2, exact=b"two")
    assert (memory.get(b"statement", b"one"), memory.get(b"statement", b"two"), len(memory)) == (None, 2, 1)


def test_the_least_recently_used_goes_first() -> None:
    memory = Memory[int](2)
    for number in range(2):
        memory.add(bytes([number]), number)
    memory.get(b"\0")
    memory.add(b"\2", 2)
    assert [memory.get(bytes([number])) for number in range(3)] == [0, None, 2]


def test_an_entry_has_one_wrapping_the_latest() -> None:
    memory = Memory[int](2)
    memory.add(b"statement", 1, wrapping=b"first")
    assert memory.get_wrapped(b"first") == 1
    for number in range(100):
        memory.get(b"statement", wrapping=b"%d" % number)
    assert memory.get_wrapped(b"first") is None
    assert memory.get_wrapped(b"99") == 1
    assert len(memory._by_wrapping) == 1
    memory.add(b"other", 2, wrapping=b"other")
    memory.add(b"third", 3)
    assert memory.get_wrapped(b"99") is None
    assert set(memory._by_wrapping) == {b"other"}


def test_only_the_exact_signature_of_an_issuer_is_known() -> None:
    issuer = load_certificate(intel.PLATFORM_CERTIFICATE.build(), structure="CA", field="")
    leaf = load_certificate(intel.PCK_CERTIFICATE.build(), structure="PCK", field="")
    known = Memory[bool](4)
    for _ in range(2):
        assert is_good(issuer, leaf.signature, leaf.signed_digest, known)
        assert not is_good(issuer, leaf.signature, sha256(leaf.signed_digest).digest(), known)
        assert not is_good(issuer, leaf.signature[:-1] + bytes([leaf.signature[-1] ^ 1]), leaf.signed_digest, known)
        assert not is_good(leaf, leaf.signature, leaf.signed_digest, known)
    assert len(known) == 1


def test_strangers_cannot_push_out_what_was_verified() -> None:
    pem = intel.pem(intel.PCK_CERTIFICATE, intel.PLATFORM_CERTIFICATE, intel.ROOT_CERTIFICATE)
    chain = verify_chain(pem, roots=OWN, kind="pck", step="test")
    for serial in range(400):
        stranger = replace(intel.PCK_CERTIFICATE, serial=serial + 10_000, signer=intel.STRANGER)
        load_chain(intel.pem(stranger), structure="stranger")
    leaf, *issuers = load_chain(pem, structure="chain").certificates
    assert leaf == chain.leaf
    # PCK certificates are as many as platforms: what is known of one is known with its platform.
    for known, certificate in zip(issuers, chain.certificates[1:], strict=True):
        assert known is certificate


def test_what_is_known_is_no_reason_to_take_other_bytes() -> None:
    der = intel.PCK_CERTIFICATE.build()
    assert load_certificate(der, structure="PCK", field="").der == der
    with pytest.raises(FormatError):
        load_certificate(der + b"\0", structure="PCK", field="")
