"""Enclave identity: what a legitimate QE, TD QE, QvE or QAE looks like (dcap.md §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from confcom.formats.tcb_info import IsvSvnLevel


class EnclaveIdentityId(StrEnum):
    """The enclaves that Intel publishes identities for."""

    QE = "QE"
    TD_QE = "TD_QE"
    QVE = "QVE"
    QAE = "QAE"


@dataclass(frozen=True, slots=True)
class EnclaveIdentity:
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


@dataclass(frozen=True, slots=True)
class SignedEnclaveIdentity:
    """An enclave identity as received: the exact bytes that are signed, and the signature r‖s (64 bytes)."""

    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Split `{"enclaveIdentity":{…},"signature":"…"}` without touching the inner bytes."""
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        raise NotImplementedError

    def enclave_identity(self) -> EnclaveIdentity:
        """The content; says nothing about the signature."""
        raise NotImplementedError
