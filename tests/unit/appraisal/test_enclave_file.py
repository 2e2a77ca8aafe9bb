"""Who signed an enclave file: only a file that EINIT would take says it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from confcom.appraisal.enclave_file import SDK_SAMPLE_SIGNER, SignedEnclave, policy_text, read_signed_enclave
from confcom.appraisal.policy_file import parse_policy
from confcom.errors import FormatError, SignatureError
from confcom.formats.sgx import HEADER, SigStruct
from signed_enclaves import enclave_file, signing_key, sigstruct


def test_signer_and_build_are_read_from_wherever_the_file_has_them() -> None:
    signed = sigstruct("app", prod_id=7, svn=4)
    found = read_signed_enclave(enclave_file(signed))
    assert (found.offset, found.mr_enclave) == (1025, signed.enclave_hash)
    key = signing_key().public_key().public_numbers().n
    assert found.mr_signer == sha256(key.to_bytes(384, "little")).digest()
    assert read_signed_enclave(bytes(signed)).mr_signer == found.mr_signer


def test_every_authenticated_byte_counts() -> None:
    data = bytes(sigstruct())
    # Header, modulus, exponent, signature and body; reserved4, q1 and q2 come after byte 1027 and are not signed.
    for at in range(1028):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((SignatureError, FormatError)):
            read_signed_enclave(bytes(changed))


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(4000), bytes(1808), HEADER + bytes(1800), HEADER + bytes(30)])
def test_a_file_without_a_signature_is_called_so(data: bytes) -> None:
    with pytest.raises(FormatError, match="holds no SIGSTRUCT"):
        read_signed_enclave(data)


@pytest.mark.parametrize("more", [24, 40, 900, 1807])
def test_a_file_that_was_cut_off_is_called_so(more: int) -> None:
    with pytest.raises(FormatError, match="ends inside its SIGSTRUCT, which begins at byte 1025"):
        read_signed_enclave(enclave_file(sigstruct())[: 1025 + more])


def test_the_key_that_it_names_must_have_signed() -> None:
    forged = replace(sigstruct(), modulus=sigstruct(key=signing_key("another")).modulus)
    with pytest.raises(SignatureError, match="byte 1025 was not signed with the key that it names"):
        read_signed_enclave(enclave_file(forged))


@pytest.mark.parametrize(
    "change",
    [
        {"exponent": 65537},
        {"modulus": bytes(384)},
        {"modulus": b"\x01" + bytes(383)},
        {"signature": bytes(384)},
        {"signature": b"\xff" * 384},
    ],
    ids=["exponent", "modulus 0", "modulus 1", "signature 0", "signature over the modulus"],
)
def test_keys_and_signatures_that_are_none(change: dict[str, object]) -> None:
    with pytest.raises(SignatureError):
        read_signed_enclave(bytes(replace(sigstruct(), **change)))  # type: ignore[arg-type]


def test_a_copy_counts_once_and_two_enclaves_are_refused() -> None:
    one = bytes(sigstruct("one"))
    assert read_signed_enclave(one + one).offset == 0
    with pytest.raises(FormatError, match="2 different signed enclaves"):
        read_signed_enclave(one + bytes(sigstruct("two")))


def test_the_policy_names_exactly_this_enclave() -> None:
    signed = read_signed_enclave(bytes(sigstruct("app", prod_id=7, svn=4)))
    policy = parse_policy(policy_text(signed).encode())
    assert policy.mr_enclave == (signed.mr_enclave.hex(),)
    assert policy.mr_signer == (signed.mr_signer.hex(),)
    assert (policy.isv_prod_id, policy.min_isv_svn, policy.allow_debug) == (7, 4, False)


def test_a_public_signing_key_and_a_debug_enclave_are_told() -> None:
    debug = read_signed_enclave(bytes(sigstruct(debug=True)))
    assert "ebug mode only" in policy_text(debug)
    sample = _Sample(debug.sigstruct, 0)
    assert "which is public" in policy_text(sample)
    assert "which is public" not in policy_text(debug)


class _Sample(SignedEnclave):
    """As signed with the sample key, which is not here to sign with."""

    def __init__(self, struct: SigStruct, offset: int) -> None:
        super().__init__(struct, offset)

    @property
    def mr_signer(self) -> bytes:
        return SDK_SAMPLE_SIGNER
