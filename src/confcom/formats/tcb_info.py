"""TCB info: which TCB levels Intel knows for an FMSPC, and what it thinks of each (dcap.md §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Self

import msgspec

from confcom.errors import FormatError
from confcom.formats import signed_json
from confcom.formats.signed_json import U32, Date, Hex2, Hex6, Hex8, Hex48, HexSignature
from confcom.formats.tcb_level import (
    MODULE_STATUSES,
    IsvSvnLevel,
    IsvSvnLevelJson,
    LevelV2Json,
    LevelV3Json,
    TcbComponent,
    TcbLevel,
    TcbStatus,
    isv_svn_levels,
    levels_v2,
    levels_v3,
)

__all__ = [
    "IsvSvnLevel",
    "SignedTcbInfo",
    "TcbComponent",
    "TcbInfo",
    "TcbLevel",
    "TcbStatus",
    "TdxModule",
    "TdxModuleIdentity",
]

STRUCTURE = "TcbInfo"


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
        document = signed_json.decode(data, _Document, "SignedTcbInfo")
        body = signed_json.exact_object(document.body, data, "SignedTcbInfo", "tcbInfo")
        return cls(body, bytes.fromhex(document.signature))

    def __bytes__(self) -> bytes:
        return signed_json.join(self.body, self.signature, "tcbInfo")

    def tcb_info(self) -> TcbInfo:
        """The content, version 2 or 3; says nothing about the signature."""
        versions: dict[int, type[_TcbInfoV2 | _TcbInfoV3]] = {2: _TcbInfoV2, 3: _TcbInfoV3}
        found = signed_json.decode_content(self.body, versions, STRUCTURE)
        return _tcb_info_v3(found) if isinstance(found, _TcbInfoV3) else _tcb_info_v2(found)


class _Document(msgspec.Struct):
    signature: HexSignature
    body: msgspec.Raw = msgspec.field(name="tcbInfo")


class _Module(msgspec.Struct, rename="camel"):
    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8


class _ModuleIdentity(_Module, rename="camel"):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    tcb_levels: list[IsvSvnLevelJson]


class _TcbInfoJson(msgspec.Struct, rename="camel"):
    version: int
    issue_date: Date
    next_update: Date
    fmspc: Hex6
    pce_id: Hex2
    # 0 is the only known way to compare components, so a level of any other type could not be understood.
    tcb_type: Literal[0]
    tcb_evaluation_data_number: U32


class _TcbInfoV2(_TcbInfoJson, rename="camel"):
    tcb_levels: list[LevelV2Json]


class _TcbInfoV3(_TcbInfoJson, rename="camel"):
    id: Literal["SGX", "TDX"]
    tcb_levels: list[LevelV3Json]
    tdx_module: _Module | None = None
    tdx_module_identities: list[_ModuleIdentity] | None = None


def _tcb_info_v2(found: _TcbInfoV2) -> TcbInfo:
    return _tcb_info(found, "SGX", None, (), levels_v2(found.tcb_levels, STRUCTURE))


def _tcb_info_v3(found: _TcbInfoV3) -> TcbInfo:
    is_tdx = found.id == "TDX"
    if is_tdx != (found.tdx_module is not None):
        raise FormatError("is required for TDX and has no place for SGX", structure=STRUCTURE, field="tdxModule")
    if found.tdx_module_identities is not None and not is_tdx:
        raise FormatError("has no place for SGX", structure=STRUCTURE, field="tdxModuleIdentities")
    module = None if found.tdx_module is None else _module(found.tdx_module)
    identities = _module_identities(found.tdx_module_identities or [])
    return _tcb_info(found, found.id, module, identities, levels_v3(found.tcb_levels, STRUCTURE, tdx=is_tdx))


def _tcb_info(
    found: _TcbInfoJson,
    tee: Literal["SGX", "TDX"],
    module: TdxModule | None,
    identities: tuple[TdxModuleIdentity, ...],
    levels: tuple[TcbLevel, ...],
) -> TcbInfo:
    return TcbInfo(
        id=tee,
        version=found.version,
        issue_date=signed_json.parse_date(found.issue_date, STRUCTURE, "issueDate"),
        next_update=signed_json.parse_date(found.next_update, STRUCTURE, "nextUpdate"),
        fmspc=bytes.fromhex(found.fmspc),
        pce_id=bytes.fromhex(found.pce_id),
        tcb_type=found.tcb_type,
        tcb_evaluation_data_number=found.tcb_evaluation_data_number,
        tdx_module=module,
        tdx_module_identities=identities,
        tcb_levels=levels,
    )


def _module(found: _Module) -> TdxModule:
    return TdxModule(
        bytes.fromhex(found.mrsigner), bytes.fromhex(found.attributes), bytes.fromhex(found.attributes_mask)
    )


def _module_identities(found: Sequence[_ModuleIdentity]) -> tuple[TdxModuleIdentity, ...]:
    # Modules are looked up by id whatever its case, so two of one name would make the verdict depend on the order.
    if len({identity.id.upper() for identity in found}) != len(found):
        raise FormatError("lists one id twice", structure=STRUCTURE, field="tdxModuleIdentities")
    identities = []
    for index, identity in enumerate(found):
        module = _module(identity)
        where = f"tdxModuleIdentities[{index}].tcbLevels"
        levels = isv_svn_levels(identity.tcb_levels, MODULE_STATUSES, STRUCTURE, where)
        identities.append(
            TdxModuleIdentity(identity.id, module.mr_signer, module.attributes, module.attributes_mask, levels)
        )
    return tuple(identities)


signed_json.prepare(_Document, _TcbInfoV2, _TcbInfoV3)
