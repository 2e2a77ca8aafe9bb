"""Enclave identity: what a legitimate QE, TD QE, QvE or QAE looks like (dcap.md §3.3)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Self

import msgspec

from confcom.formats import signed_json
from confcom.formats.signed_json import U16, U32, Date, Hex4, Hex16, Hex32, HexSignature
from confcom.formats.tcb_info import ENCLAVE_STATUSES, IsvSvnLevel, IsvSvnLevelJson, isv_svn_levels

STRUCTURE = "EnclaveIdentity"


class EnclaveIdentityId(StrEnum):
    """The enclaves that Intel publishes identities for."""

    QE = "QE"
    TD_QE = "TD_QE"
    QVE = "QVE"
    QAE = "QAE"


class EnclaveIdentity(msgspec.Struct, frozen=True):
    """The content of an enclave identity, version 2.

    `misc_select` and its mask are 4 bytes, `attributes` and their mask 16 bytes, all in memory order; `mr_signer`
    is 32 bytes; levels are sorted highest first.
    """

    id: EnclaveIdentityId
    version: int
    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    tcb_levels: tuple[IsvSvnLevel, ...]


class SignedEnclaveIdentity(msgspec.Struct, frozen=True):
    """An enclave identity as received: the exact bytes that are signed, and the signature r‖s (64 bytes)."""

    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Split `{"enclaveIdentity":{…},"signature":"…"}` without touching the inner bytes."""
        document = signed_json.decode(data, _Document, "SignedEnclaveIdentity")
        body = signed_json.exact_object(
            document.body, data, "SignedEnclaveIdentity", "enclaveIdentity", signature=document.signature
        )
        return cls(body, bytes.fromhex(document.signature))

    def __bytes__(self) -> bytes:
        return signed_json.join(self.body, self.signature, "enclaveIdentity")

    def enclave_identity(self) -> EnclaveIdentity:
        """The content, version 2; says nothing about the signature."""
        return _enclave_identity(signed_json.decode_content(self.body, {2: _EnclaveIdentityJson}, STRUCTURE))


class _Document(msgspec.Struct):
    signature: HexSignature
    body: msgspec.Raw = msgspec.field(name="enclaveIdentity")


class _EnclaveIdentityJson(msgspec.Struct, rename="camel"):
    id: EnclaveIdentityId
    version: int
    issue_date: Date
    next_update: Date
    tcb_evaluation_data_number: U32
    miscselect: Hex4
    miscselect_mask: Hex4
    attributes: Hex16
    attributes_mask: Hex16
    mrsigner: Hex32
    isvprodid: U16
    tcb_levels: tuple[IsvSvnLevelJson, ...]


def _enclave_identity(found: _EnclaveIdentityJson) -> EnclaveIdentity:
    return EnclaveIdentity(
        id=found.id,
        version=found.version,
        issue_date=signed_json.parse_date(found.issue_date, STRUCTURE, "issueDate"),
        next_update=signed_json.parse_date(found.next_update, STRUCTURE, "nextUpdate"),
        tcb_evaluation_data_number=found.tcb_evaluation_data_number,
        misc_select=bytes.fromhex(found.miscselect),
        misc_select_mask=bytes.fromhex(found.miscselect_mask),
        attributes=bytes.fromhex(found.attributes),
        attributes_mask=bytes.fromhex(found.attributes_mask),
        mr_signer=bytes.fromhex(found.mrsigner),
        isv_prod_id=found.isvprodid,
        tcb_levels=isv_svn_levels(found.tcb_levels, ENCLAVE_STATUSES, STRUCTURE, "tcbLevels"),
    )


signed_json.prepare(_Document, _EnclaveIdentityJson)
