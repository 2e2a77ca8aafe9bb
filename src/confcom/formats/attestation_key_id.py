"""Attestation key ids: which quoting enclave and which algorithm signs a quote.

Layouts: `sgx_ql_att_key_id_t` (158 bytes), `sgx_att_key_id_ext_t` (256 bytes) and `sgx_ql_att_key_id_list_t` of Intel's
`sgx_quote.h`; packed, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

from confcom.formats.codec import U16, U32, Cursor, Record, nested, raw

ALGORITHM_ECDSA_P256 = 2
MAX_KEY_IDS = 10
"""Intel's service refuses longer lists."""

INTEL_QE3_MR_SIGNER = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
INTEL_TD_QE_MR_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")


@dataclass(frozen=True, slots=True)
class QlAttestationKeyId(Record):
    """`sgx_ql_att_key_id_t`, 158 bytes: the part that providers compare."""

    id: Annotated[int, U16]
    version: Annotated[int, U16]
    mr_signer_length: Annotated[int, U16]
    mr_signer: Annotated[bytes, raw(48)]
    prod_id: Annotated[int, U32]
    extended_prod_id: Annotated[bytes, raw(16)]
    config_id: Annotated[bytes, raw(64)]
    family_id: Annotated[bytes, raw(16)]
    algorithm_id: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class AttestationKeyId(Record):
    """`sgx_att_key_id_ext_t`, 256 bytes: the id with the fields that only EPID used."""

    base: Annotated[QlAttestationKeyId, nested]
    spid: Annotated[bytes, raw(16)]
    att_key_type: Annotated[int, U16]
    reserved: Annotated[bytes, raw(80)]

    def same_key(self, other: AttestationKeyId) -> bool:
        """Whether both name the same key: only the first 158 bytes count."""
        return bytes(self.base) == bytes(other.base)

    def with_algorithm(self, algorithm_id: int) -> AttestationKeyId:
        """The same id for another signature algorithm."""
        return replace(self, base=replace(self.base, algorithm_id=algorithm_id))


ECDSA_P256_KEY_ID = AttestationKeyId(
    base=QlAttestationKeyId(
        id=0,
        version=0,
        mr_signer_length=32,
        mr_signer=INTEL_QE3_MR_SIGNER + bytes(16),
        prod_id=1,
        extended_prod_id=bytes(16),
        config_id=bytes(64),
        family_id=bytes(16),
        algorithm_id=ALGORITHM_ECDSA_P256,
    ),
    spid=bytes(16),
    att_key_type=0,
    reserved=bytes(80),
)
"""Intel's production QE3: clients hard-code this id and never ask, so every platform answers to it."""


@dataclass(frozen=True, slots=True)
class AttestationKeyIdList:
    """`sgx_ql_att_key_id_list_t`: 8-byte header and up to ten ids."""

    ids: tuple[AttestationKeyId, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the list; the count must account for every byte."""
        cursor = Cursor(data, "AttestationKeyIdList")
        for field in ("id", "version"):
            if value := cursor.u16(field):
                raise cursor.error(f"must be 0, is {value}", field, cursor.offset - 2)
        count = cursor.u32("num_att_ids")
        if not 1 <= count <= MAX_KEY_IDS:
            raise cursor.error(f"must be 1 to {MAX_KEY_IDS}, is {count}", "num_att_ids", 4)
        size = AttestationKeyId.size()
        ids = tuple(AttestationKeyId.parse(cursor.take(size, f"ids[{i}]")) for i in range(count))
        cursor.finish()
        return cls(ids)

    def __bytes__(self) -> bytes:
        return bytes(4) + len(self.ids).to_bytes(4, "little") + b"".join(map(bytes, self.ids))
