"""Raw ECDSA: 64 bytes of key, 64 bytes of signature, big-endian."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

import pki_builder as intel
from confcom.errors import SignatureError
from confcom.formats import der
from confcom.pki.proof import _integer, load_public_key, verify_ecdsa

RAW_KEY = intel.point(intel.PCK)[1:]
MESSAGE = b"the QE report"
SIGNATURE = intel.raw_signature(intel.PCK, MESSAGE)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _verify(signature: bytes, message: bytes = MESSAGE, raw_key: bytes = RAW_KEY) -> None:
    verify_ecdsa(load_public_key(raw_key), signature, sha256(message).digest(), step="(5)", what="the QE report")


def test_a_signature_of_the_key_is_good() -> None:
    _verify(SIGNATURE)


def test_the_other_signature_of_the_same_message_is_good_too() -> None:
    # (r, n - s): nothing here depends on a signature being unique, and Intel's library accepts it.
    s = ORDER - int.from_bytes(SIGNATURE[32:], "big")
    _verify(SIGNATURE[:32] + s.to_bytes(32, "big"))


@pytest.mark.parametrize(
    "signature",
    [
        SIGNATURE[32:] + SIGNATURE[:32],
        SIGNATURE[:-1] + bytes((SIGNATURE[-1] ^ 1,)),
        bytes(64),
        b"\xff" * 64,
        SIGNATURE[:32] + bytes(32),
        SIGNATURE[:63],
        SIGNATURE + b"\0",
        b"",
    ],
)
def test_any_other_signature_is_refused_with_its_step(signature: bytes) -> None:
    with pytest.raises(SignatureError, match="the QE report") as caught:
        _verify(signature)
    assert caught.value.step == "(5)"


@given(st.integers(0, 32), st.integers(0, 32), st.binary(min_size=64, max_size=64))
def test_numbers_are_written_as_the_library_writes_them(first: int, second: int, raw: bytes) -> None:
    """Whatever zeros they begin with: of one signature in 256, r or s has less than 32 bytes."""
    r, s = bytes(first) + raw[first:32], bytes(second) + raw[32 + second :]
    numbers = int.from_bytes(r), int.from_bytes(s)
    written = der.write(der.SEQUENCE, *[_integer(number) for number in (r, s)])
    assert written == encode_dss_signature(*numbers)


def test_another_message_or_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        _verify(SIGNATURE, MESSAGE + b"!")
    with pytest.raises(SignatureError):
        _verify(SIGNATURE, raw_key=intel.point(intel.STRANGER)[1:])


@pytest.mark.parametrize(
    "raw", [bytes(64), b"\xff" * 64, RAW_KEY[:63], b"\x04" + RAW_KEY, b"", RAW_KEY[32:] + RAW_KEY[:32]]
)
def test_what_is_no_point_on_the_curve_is_no_key(raw: bytes) -> None:
    with pytest.raises(SignatureError):
        load_public_key(raw, step="(4)", what="attestation key")
