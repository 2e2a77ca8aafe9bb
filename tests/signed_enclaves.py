"""Signed enclave files, made as a framework's signing tool makes them; nothing in them could run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from confcom.formats.sgx import HEADER, HEADER2, KEY_SIZE, Attributes, SigStruct
from confcom.simulator.declaration import measure


@cache
def signing_key(name: str = "vendor") -> rsa.RSAPrivateKey:
    """A signer's key, the same for the same name in one process."""
    # Named keys are different keys.
    del name
    return rsa.generate_private_key(public_exponent=3, key_size=8 * KEY_SIZE)


def sigstruct(
    name: str = "app", *, key: rsa.RSAPrivateKey | None = None, prod_id: int = 1, svn: int = 3, debug: bool = False
) -> SigStruct:
    """A signed SIGSTRUCT; signature and modulus are little-endian."""
    key = key or signing_key()
    modulus = key.public_key().public_numbers().n
    unsigned = SigStruct(
        header=HEADER, vendor=0, date=0x20261129, header2=HEADER2, sw_defined=0, reserved1=bytes(84),
        modulus=modulus.to_bytes(KEY_SIZE, "little"), exponent=3, signature=bytes(KEY_SIZE),
        misc_select=0, misc_mask=0xFFFFFFFF, cet_attributes=0, cet_attributes_mask=0, reserved2=bytes(2),
        isv_family_id=bytes(16), attributes=Attributes(6 if debug else 4, 0xE7),
        attribute_mask=Attributes(2**64 - 1, 0),
        enclave_hash=measure(f"enclave {name}"), reserved3=bytes(16), isv_ext_prod_id=bytes(16),
        isv_prod_id=prod_id, isv_svn=svn, reserved4=bytes(12), q1=bytes(KEY_SIZE), q2=bytes(KEY_SIZE),
    )  # fmt: skip
    signature = int.from_bytes(key.sign(unsigned.signed_bytes, padding.PKCS1v15(), hashes.SHA256()), "big")
    q1, rest = divmod(signature * signature, modulus)
    q2 = signature * rest // modulus
    return replace(
        unsigned,
        signature=signature.to_bytes(KEY_SIZE, "little"),
        q1=q1.to_bytes(KEY_SIZE, "little"),
        q2=q2.to_bytes(KEY_SIZE, "little"),
    )


def enclave_file(signed: SigStruct) -> bytes:
    """A file as a linker leaves it, with the SIGSTRUCT somewhere inside, at an odd place."""
    return b"\x7fELF" + bytes(1021) + bytes(signed) + b"code" * 100
