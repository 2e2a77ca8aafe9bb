from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from confcom.errors import ConfigError
from confcom.simulator.machine import (
    P256_ORDER,
    aes_cmac,
    check_seed,
    derive_bytes,
    derive_p256_key,
    raw_public_key,
    sign_raw,
)


@pytest.mark.parametrize(
    ("message", "mac"),
    [
        ("", "bb1d6929e95937287fa37d129b756746"),
        ("6bc1bee22e409f96e93d7e117393172a", "070a16b46b4d4144f79bdd9dd04a287c"),
        (
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411",
            "dfa66747de9ae63030ca32611497c827",
        ),
    ],
)
def test_the_mac_is_that_of_rfc_4493(message, mac):
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    assert aes_cmac(key, bytes.fromhex(message)) == bytes.fromhex(mac)


def test_every_label_and_every_seed_gives_other_bytes():
    derived = {derive_bytes(seed, label) for seed in (b"a" * 16, b"b" * 16) for label in ("x", "y", "z")}
    assert len(derived) == 6
    assert derive_bytes(b"a" * 16, "x", 48)[:32] == derive_bytes(b"a" * 16, "x")


def test_a_key_is_the_same_for_the_same_seed_and_signs_the_same():
    first, second = (derive_p256_key(b"seed" * 8, "label") for _ in range(2))
    assert raw_public_key(first) == raw_public_key(second)
    assert sign_raw(first, b"message") == sign_raw(second, b"message")
    assert raw_public_key(first) != raw_public_key(derive_p256_key(b"seed" * 8, "other label"))


def test_a_raw_signature_is_r_and_s_big_endian_over_the_sha256_of_the_message():
    key = derive_p256_key(b"seed" * 8, "label")
    signature = sign_raw(key, b"message")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    assert 0 < r < P256_ORDER
    assert 0 < s < P256_ORDER
    key.public_key().verify(encode_dss_signature(r, s), b"message", ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(encode_dss_signature(r, s), b"massage", ec.ECDSA(SHA256()))


def test_signatures_follow_rfc_6979():
    # A.2.5, "ECDSA, 256 Bits (Prime Field)", SHA-256, message "sample".
    scalar = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    assert sign_raw(key, b"sample").hex() == (
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
        "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    )


@pytest.mark.parametrize("size", [0, 15, 65])
def test_a_seed_of_the_wrong_size_is_refused_without_being_shown(size):
    with pytest.raises(ConfigError) as error:
        check_seed(b"Z" * size)
    assert "ZZ" not in str(error.value)
    assert str(size) in str(error.value)


def test_seeds_of_16_to_64_bytes_are_taken():
    for size in (16, 32, 64):
        check_seed(hashlib.sha512(b"").digest()[:size])
