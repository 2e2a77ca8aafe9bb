"""SIGSTRUCT, the signature of an enclave: who signed which code as which product, 1808 bytes.

Layout: Intel SDM vol. 3D, "Enclave Signature Structure (SIGSTRUCT)". All integers are little-endian, those of 384
bytes too. The signature covers bytes 0 to 127 and 900 to 1027; `appraisal.enclave_file` checks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from confcom.formats.record import U8, U16, U32, Record, nested, raw
from confcom.formats.sgx import Attributes

HEADER = bytes.fromhex("06000000e10000000000010000000000")
HEADER2 = bytes.fromhex("01010000600000006000000001000000")
KEY_SIZE = 384
"""Bytes of modulus, signature, Q1 and Q2 (RSA-3072)."""
MAX_PLACES = 64
"""Places of one file that may look like a SIGSTRUCT; a signed enclave has one."""


@dataclass(frozen=True, slots=True)
class SigStruct(Record):
    """`enclave_css_t`, 1808 bytes."""

    header: Annotated[bytes, raw(16)]
    vendor: Annotated[int, U32]
    date: Annotated[int, U32]
    header2: Annotated[bytes, raw(16)]
    sw_defined: Annotated[int, U32]
    reserved1: Annotated[bytes, raw(84)]
    modulus: Annotated[bytes, raw(KEY_SIZE)]
    exponent: Annotated[int, U32]
    signature: Annotated[bytes, raw(KEY_SIZE)]
    misc_select: Annotated[int, U32]
    misc_mask: Annotated[int, U32]
    cet_attributes: Annotated[int, U8]
    cet_attributes_mask: Annotated[int, U8]
    reserved2: Annotated[bytes, raw(2)]
    isv_family_id: Annotated[bytes, raw(16)]
    attributes: Annotated[Attributes, nested]
    attribute_mask: Annotated[Attributes, nested]
    enclave_hash: Annotated[bytes, raw(32)]
    reserved3: Annotated[bytes, raw(16)]
    isv_ext_prod_id: Annotated[bytes, raw(16)]
    isv_prod_id: Annotated[int, U16]
    isv_svn: Annotated[int, U16]
    reserved4: Annotated[bytes, raw(12)]
    q1: Annotated[bytes, raw(KEY_SIZE)]
    q2: Annotated[bytes, raw(KEY_SIZE)]

    @property
    def signed_bytes(self) -> bytes:
        """The 256 bytes that the signature covers."""
        data = bytes(self)
        return data[:128] + data[900:1028]


def is_sigstruct(data: bytes) -> bool:
    """Whether `data` begins as a SIGSTRUCT does: both fixed headers in their places."""
    return data.startswith(HEADER) and data[24:40] == HEADER2


def find_sigstructs(data: bytes) -> Iterator[tuple[int, SigStruct]]:
    """What looks like a SIGSTRUCT in a file, with its offset; at most the first `MAX_PLACES`.

    Every framework puts it elsewhere (a note of the SDK's, a section of Open Enclave's, a file of Gramine's); its two
    fixed headers are the same everywhere.
    """
    found, size = 0, SigStruct.size()
    at = data.find(HEADER)
    while at >= 0 and found < MAX_PLACES:
        if data[at + 24 : at + 40] == HEADER2 and at + size <= len(data):
            found += 1
            yield at, SigStruct.parse(data[at : at + size])
        at = data.find(HEADER, at + 1)
