"""TCB info: which TCB levels Intel knows for an FMSPC, and what it thinks of each (dcap.md §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self


class TcbStatus(StrEnum):
    """Intel's words. The two relaunch statuses are verdicts on TDs; no TCB level carries them."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"


@dataclass(frozen=True, slots=True)
class TcbComponent:
    """One of the 16 components of a level: its SVN and, in version 3, what it is and who updates it."""

    svn: int
    category: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level of the platform's TCB. `tdx_components` are there for id TDX alone."""

    sgx_components: tuple[int, ...]
    pce_svn: int
    tdx_components: tuple[int, ...] | None
    tcb_date: datetime
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]
    components: tuple[TcbComponent, ...] = ()
    tdx_component_details: tuple[TcbComponent, ...] | None = None


@dataclass(frozen=True, slots=True)
class IsvSvnLevel:
    """One level of an enclave or of a TDX module, known by its ISVSVN alone."""

    isv_svn: int
    tcb_date: datetime
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TdxModule:
    """The TDX module of major version 0: MRSIGNERSEAM 48 bytes, SEAMATTRIBUTES and their mask 8 bytes each."""

    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes


@dataclass(frozen=True, slots=True)
class TdxModuleIdentity:
    """A TDX module of a later major version, `TDX_01` and on, with levels of its own, highest first."""

    id: str
    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    tcb_levels: tuple[IsvSvnLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """The content of a TCB info, version 2 or 3. `fmspc` 6 bytes, `pce_id` 2 bytes; levels sorted highest first."""

    id: Literal["SGX", "TDX"]
    version: int
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    tcb_type: int
    tcb_evaluation_data_number: int
    tdx_module: TdxModule | None
    tdx_module_identities: tuple[TdxModuleIdentity, ...]
    tcb_levels: tuple[TcbLevel, ...]


@dataclass(frozen=True, slots=True)
class SignedTcbInfo:
    """TCB info as received: the exact bytes that are signed, and the signature r‖s (64 bytes)."""

    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Split `{"tcbInfo":{…},"signature":"…"}` without touching the inner bytes."""
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        raise NotImplementedError

    def tcb_info(self) -> TcbInfo:
        """The content; says nothing about the signature."""
        raise NotImplementedError
