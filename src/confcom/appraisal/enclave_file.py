"""Reads who signed an enclave file, and makes the policy that accepts exactly that enclave.

The processor checks the same signature when the enclave starts (EINIT) and reports the hash of its key as MRSIGNER:
a file and a quote with equal MRSIGNER were signed with one key.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from confcom.errors import FormatError, SignatureError
from confcom.formats.sgx import HEADER, HEADER2, SigStruct, find_sigstructs

MAX_ENCLAVE = 512 << 20
"""Bytes of a signed enclave file."""
EXPONENT = 3
"""The only public exponent that EINIT takes."""

SDK_SAMPLE_SIGNER = bytes.fromhex("83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e")
"""MRSIGNER of the key that the samples of Intel's SDK are signed with; the key is public."""

_ADVICE = (
    "Name a signed enclave: the .signed.so of Intel's SDK or EGo, an Open Enclave binary after `oesign sign`, "
    "or Gramine's .sig file."
)


@dataclass(frozen=True, slots=True)
class SignedEnclave:
    """An enclave file's SIGSTRUCT, with a signature that was checked, and its place in the file in bytes."""

    sigstruct: SigStruct
    offset: int

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER, 32 bytes: SHA-256 of the modulus, little-endian as it stands."""
        return sha256(self.sigstruct.modulus).digest()

    @property
    def mr_enclave(self) -> bytes:
        """MRENCLAVE, 32 bytes, as the signer measured it."""
        return self.sigstruct.enclave_hash

    @property
    def debug_only(self) -> bool:
        """Whether the enclave starts in debug mode only: its memory is open wherever it runs."""
        return self.sigstruct.attributes.debug and self.sigstruct.attribute_mask.debug


def read_signed_enclave(data: bytes, *, name: str = "enclave file") -> SignedEnclave:
    """The SIGSTRUCT of an enclave file of any framework; `name` is the file's in errors.

    `FormatError` when there is none, or when there are several different ones; `SignatureError` when what is there
    was not signed with the key that it names.
    """
    places = list(find_sigstructs(data))
    if not places:
        at = data.rfind(HEADER)
        if at >= 0 and len(data) < at + SigStruct.size() and HEADER2.startswith(data[at + 24 : at + 40]):
            raise _refusal(name, f"ends inside its SIGSTRUCT, which begins at byte {at}", "Copy the whole file again.")
        raise _refusal(name, "holds no SIGSTRUCT: this is no enclave, or one that was not signed")
    # From the last to the first: of equal ones the first place counts.
    sound = {bytes(found): SignedEnclave(found, at) for at, found in reversed(places) if _is_signed(found)}
    if not sound:
        at = places[0][0]
        raise SignatureError(
            f"{name}: the SIGSTRUCT at byte {at} was not signed with the key that it names: no processor starts it",
            step="sigstruct-signature",
            expected="a signature by the key in the SIGSTRUCT",
            found="another signature",
            advice="Sign the enclave again; if the file was copied, compare its hash with the original's.",
        )
    if len(sound) > 1:
        builds = ", ".join(sorted(enclave.mr_enclave.hex() for enclave in sound.values()))
        message = f"holds {len(sound)} different signed enclaves (MRENCLAVE {builds})"
        raise _refusal(name, message, "Name one enclave's file.")
    return next(iter(sound.values()))


def policy_text(enclave: SignedEnclave) -> str:
    """A policy file, in TOML, that accepts exactly this enclave; later security versions with the first line gone."""
    body = enclave.sigstruct
    lines = [
        "# This build. Without this line: every build of this signer's product from this security version on.",
        f'mr_enclave = ["{enclave.mr_enclave.hex()}"]',
        "# Who signed it.",
        f'mr_signer = ["{enclave.mr_signer.hex()}"]',
        f"isv_prod_id = {body.isv_prod_id}",
        f"min_isv_svn = {body.isv_svn}",
    ]
    if enclave.mr_signer == SDK_SAMPLE_SIGNER:
        lines.append("# The signer is the sample key of Intel's SDK, which is public: keep the line mr_enclave.")
    if enclave.debug_only:
        lines += [
            "# Signed for debug mode only, which is refused by default: the host reads its memory.",
            "# allow_debug = true",
        ]
    return "\n".join((*lines, ""))


def _is_signed(found: SigStruct) -> bool:
    """PKCS #1 v1.5 with SHA-256 under the 3072-bit key in the struct, exponent 3."""
    modulus = int.from_bytes(found.modulus, "little")
    # Less is not a key of 3072 bits; EINIT does not take it.
    if found.exponent != EXPONENT or modulus.bit_length() != 8 * len(found.modulus) or not modulus & 1:
        return False
    key = rsa.RSAPublicNumbers(EXPONENT, modulus).public_key()
    try:
        key.verify(found.signature[::-1], found.signed_bytes, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _refusal(name: str, message: str, advice: str = _ADVICE) -> FormatError:
    return FormatError(message, structure=name, field="", advice=advice)
