"""Intel's signed JSON about TCBs: TCB infos and enclave identities, and the levels that both have.

A TCB info has the TCB levels that Intel knows for an FMSPC, with a status for each (dcap.md §3.2); an enclave identity
says what a legitimate QE, TD QE, QvE or QAE looks like (dcap.md §3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec

from confcom.errors import FormatError
from confcom.formats import signed_json
from confcom.formats.signed_json import U8, U16, U32, Date, Hex2, Hex4, Hex6, Hex8, Hex16, Hex32, Hex48, HexSignature

# Values are structs of `msgspec`, which take a sixth of the time of dataclasses to make. There are hundreds; none is
# part of a reference cycle, so the garbage collector need not look at them (`gc=False`).


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


MODULE_STATUSES = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, TcbStatus.REVOKED})
"""What Intel says of TDX modules."""
ENCLAVE_STATUSES = MODULE_STATUSES | {TcbStatus.CONFIGURATION_NEEDED, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED}
"""What Intel's libraries know of enclaves: nothing that an enclave's own hardening could heal."""
_PLATFORM_STATUSES = frozenset(TcbStatus) - {
    TcbStatus.TD_RELAUNCH_ADVISED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
}


class TcbComponent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One of the 16 components of a level: its SVN and, in version 3, what it is and who updates it."""

    svn: U8
    category: str | None = None
    type: str | None = None


class TcbLevel(msgspec.Struct, frozen=True, gc=False):
    """One level of the platform's TCB. `tdx_components` are there for id TDX alone."""

    sgx_components: tuple[int, ...]
    pce_svn: int
    tdx_components: tuple[int, ...] | None
    tcb_date: datetime
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]
    components: tuple[TcbComponent, ...] = ()
    tdx_component_details: tuple[TcbComponent, ...] | None = None


class IsvSvnLevel(msgspec.Struct, frozen=True, gc=False):
    """One level of an enclave or of a TDX module, known by its ISVSVN alone."""

    isv_svn: int
    tcb_date: datetime
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]


class _IsvSvn(msgspec.Struct, gc=False):
    isvsvn: U16


_Sixteen = Annotated[tuple[TcbComponent, ...], msgspec.Meta(min_length=16, max_length=16)]
_FLAT_COMPONENTS = tuple(f"sgxtcbcomp{number:02d}svn" for number in range(1, 17))
_FlatTcb: Any = msgspec.defstruct("_FlatTcb", [*((name, U8) for name in _FLAT_COMPONENTS), ("pcesvn", U16)])


class _ListedTcb(msgspec.Struct, gc=False, omit_defaults=True):
    sgxtcbcomponents: _Sixteen
    pcesvn: U16
    tdxtcbcomponents: _Sixteen | None = None


class _Level(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """What every kind of level says about itself, in the order of Intel's JSON; `tcb` comes first."""

    tcb: Any
    date: Date = msgspec.field(name="tcbDate")
    status: TcbStatus = msgspec.field(name="tcbStatus")
    advisory_ids: tuple[str, ...] = msgspec.field(name="advisoryIDs", default=())


class IsvSvnLevelJson(_Level, kw_only=True):
    """A level as it stands in the JSON of an enclave identity or a TDX module identity."""

    tcb: _IsvSvn


class LevelV2Json(_Level, kw_only=True):
    """A level of a TCB info of version 2."""

    tcb: _FlatTcb


class LevelV3Json(_Level, kw_only=True):
    """A level of a TCB info of version 3."""

    tcb: _ListedTcb


def levels_v2(found: Sequence[LevelV2Json], structure: str) -> tuple[TcbLevel, ...]:
    """Levels of a TCB info of version 2, highest first."""
    levels = []
    for level in found:
        sgx = tuple([TcbComponent(getattr(level.tcb, name)) for name in _FLAT_COMPONENTS])
        levels.append(_level(level, found, sgx, None, structure))
    return _sorted_levels(levels, structure)


def levels_v3(found: Sequence[LevelV3Json], structure: str, *, tdx: bool) -> tuple[TcbLevel, ...]:
    """Levels of a TCB info of version 3, highest first; with the TDX components for a TCB info of TDX."""
    levels = []
    for level in found:
        details = level.tcb.tdxtcbcomponents if tdx else None
        if tdx and details is None:
            field = f"tcbLevels[{found.index(level)}].tcb.tdxtcbcomponents"
            raise FormatError("is required for TDX", structure=structure, field=field)
        levels.append(_level(level, found, level.tcb.sgxtcbcomponents, details, structure))
    return _sorted_levels(levels, structure)


def isv_svn_levels(
    found: Sequence[IsvSvnLevelJson], statuses: frozenset[TcbStatus], structure: str, field: str
) -> tuple[IsvSvnLevel, ...]:
    """Levels of an enclave or a TDX module, highest first; none at all or one ISVSVN twice is a `FormatError`.

    So is a status that is not one of `statuses`.
    """
    if not found:
        raise FormatError("is empty", structure=structure, field=field)
    levels = {
        level.tcb.isvsvn: IsvSvnLevel(level.tcb.isvsvn, *_judgement(level, found, statuses, structure, field))
        for level in found
    }
    if len(levels) != len(found):
        raise FormatError("lists one ISVSVN twice", structure=structure, field=field)
    return tuple([levels[isv_svn] for isv_svn in sorted(levels, reverse=True)])


def _level(
    level: LevelV2Json | LevelV3Json,
    found: Sequence[LevelV2Json | LevelV3Json],
    sgx: tuple[TcbComponent, ...],
    tdx: tuple[TcbComponent, ...] | None,
    structure: str,
) -> TcbLevel:
    date, status, advisories = _judgement(level, found, _PLATFORM_STATUSES, structure, "tcbLevels")
    return TcbLevel(
        sgx_components=tuple([component.svn for component in sgx]),
        pce_svn=level.tcb.pcesvn,
        tdx_components=None if tdx is None else tuple([component.svn for component in tdx]),
        tcb_date=date,
        tcb_status=status,
        advisory_ids=advisories,
        components=sgx,
        tdx_component_details=tdx,
    )


def _judgement(
    level: _Level, found: Sequence[_Level], statuses: frozenset[TcbStatus], structure: str, field: str
) -> tuple[datetime, TcbStatus, tuple[str, ...]]:
    """Date, status and advisories of one of the levels of that field."""
    try:
        date = datetime.fromisoformat(level.date)
        if level.status in statuses:
            return date, level.status, level.advisory_ids
        wrong, message = "tcbStatus", f"{level.status} is not a status of it"
    except ValueError:
        wrong, message = "tcbDate", f"no such time: {level.date}"
    raise FormatError(message, structure=structure, field=f"{field}[{found.index(level)}].{wrong}")


def _sorted_levels(levels: Sequence[TcbLevel], structure: str) -> tuple[TcbLevel, ...]:
    if not levels:
        raise FormatError("is empty", structure=structure, field="tcbLevels")
    # The first level that is low enough is the platform's, so the order is part of the meaning; Intel's library
    # sorts as well, and refuses a TCB that is listed twice, because its status would depend on the order.
    by_tcb = {(level.sgx_components, level.pce_svn, level.tdx_components or ()): level for level in levels}
    if len(by_tcb) != len(levels):
        raise FormatError("lists one TCB twice", structure=structure, field="tcbLevels")
    return tuple([by_tcb[tcb] for tcb in sorted(by_tcb, reverse=True)])


# TCB infos.

STRUCTURE = "TcbInfo"


class TdxModule(msgspec.Struct, frozen=True):
    """The TDX module of major version 0: MRSIGNERSEAM 48 bytes, SEAMATTRIBUTES and their mask 8 bytes each."""

    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes


class TdxModuleIdentity(msgspec.Struct, frozen=True):
    """A TDX module of a later major version, `TDX_01` and on, with levels of its own, highest first."""

    id: str
    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    tcb_levels: tuple[IsvSvnLevel, ...]


class TcbInfo(msgspec.Struct, frozen=True):
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


class SignedTcbInfo(msgspec.Struct, frozen=True):
    """TCB info as received: the exact bytes that are signed, and the signature r‖s (64 bytes)."""

    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Split `{"tcbInfo":{…},"signature":"…"}` without touching the inner bytes."""
        return cls(*signed_json.split(data, _Document, "SignedTcbInfo", "tcbInfo"))

    def __bytes__(self) -> bytes:
        return signed_json.join(self.body, self.signature, "tcbInfo")

    def tcb_info(self) -> TcbInfo:
        """The content, version 2 or 3; says nothing about the signature."""
        versions: dict[int, type[_TcbInfoV2 | _TcbInfoV3]] = {2: _TcbInfoV2, 3: _TcbInfoV3}
        found = signed_json.decode_content(self.body, versions, STRUCTURE)
        if isinstance(found, _TcbInfoV3):
            return _tcb_info_v3(found)
        return _tcb_info(found, "SGX", None, (), levels_v2(found.tcb_levels, STRUCTURE))


class _Document(msgspec.Struct):
    signature: HexSignature
    body: msgspec.Raw = msgspec.field(name="tcbInfo")


class _Module(msgspec.Struct, rename="camel"):
    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8


class _ModuleIdentity(msgspec.Struct, rename="camel"):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8
    tcb_levels: tuple[IsvSvnLevelJson, ...]


class _TcbInfoV2(msgspec.Struct, rename="camel"):
    version: int
    issue_date: Date
    next_update: Date
    fmspc: Hex6
    pce_id: Hex2
    # 0 is the only known way to compare components, so a level of any other type could not be understood.
    tcb_type: Literal[0]
    tcb_evaluation_data_number: U32
    tcb_levels: tuple[LevelV2Json, ...]


class _TcbInfoV3(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    id: Literal["SGX", "TDX"]
    version: int
    issue_date: Date
    next_update: Date
    fmspc: Hex6
    pce_id: Hex2
    tcb_type: Literal[0]
    tcb_evaluation_data_number: U32
    tdx_module: _Module | None = None
    tdx_module_identities: tuple[_ModuleIdentity, ...] | None = None
    tcb_levels: tuple[LevelV3Json, ...]


def _tcb_info_v3(found: _TcbInfoV3) -> TcbInfo:
    is_tdx = found.id == "TDX"
    if is_tdx != (found.tdx_module is not None):
        raise FormatError("is required for TDX and has no place for SGX", structure=STRUCTURE, field="tdxModule")
    if found.tdx_module_identities is not None and not is_tdx:
        raise FormatError("has no place for SGX", structure=STRUCTURE, field="tdxModuleIdentities")
    module = None if found.tdx_module is None else _module(found.tdx_module)
    identities = _module_identities(found.tdx_module_identities or ())
    return _tcb_info(found, found.id, module, identities, levels_v3(found.tcb_levels, STRUCTURE, tdx=is_tdx))


def _tcb_info(
    found: _TcbInfoV2 | _TcbInfoV3,
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


def _module(found: _Module | _ModuleIdentity) -> TdxModule:
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


# Enclave identities.

_IDENTITY = "EnclaveIdentity"


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
        return cls(*signed_json.split(data, _IdentityDocument, "SignedEnclaveIdentity", "enclaveIdentity"))

    def __bytes__(self) -> bytes:
        return signed_json.join(self.body, self.signature, "enclaveIdentity")

    def enclave_identity(self) -> EnclaveIdentity:
        """The content, version 2; says nothing about the signature."""
        return _enclave_identity(signed_json.decode_content(self.body, {2: _EnclaveIdentityJson}, _IDENTITY))


class _IdentityDocument(msgspec.Struct):
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
        issue_date=signed_json.parse_date(found.issue_date, _IDENTITY, "issueDate"),
        next_update=signed_json.parse_date(found.next_update, _IDENTITY, "nextUpdate"),
        tcb_evaluation_data_number=found.tcb_evaluation_data_number,
        misc_select=bytes.fromhex(found.miscselect),
        misc_select_mask=bytes.fromhex(found.miscselect_mask),
        attributes=bytes.fromhex(found.attributes),
        attributes_mask=bytes.fromhex(found.attributes_mask),
        mr_signer=bytes.fromhex(found.mrsigner),
        isv_prod_id=found.isvprodid,
        tcb_levels=isv_svn_levels(found.tcb_levels, ENCLAVE_STATUSES, _IDENTITY, "tcbLevels"),
    )


signed_json.prepare(_IdentityDocument, _EnclaveIdentityJson)
