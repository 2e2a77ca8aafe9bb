"""TCB levels: an SVN or a set of them, with the date and the status that Intel gave it, and how JSON spells them.

TCB infos of version 2 and 3, enclave identities and TDX module identities share these (dcap.md §3.2, §3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any

import msgspec

from confcom.errors import FormatError
from confcom.formats import signed_json
from confcom.formats.signed_json import U8, U16, Date


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


class _Judged(msgspec.Struct, kw_only=True):
    """What every kind of level says about itself."""

    date: Date = msgspec.field(name="tcbDate")
    status: TcbStatus = msgspec.field(name="tcbStatus")
    advisory_ids: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class _IsvSvn(msgspec.Struct):
    isvsvn: U16


class IsvSvnLevelJson(_Judged, kw_only=True):
    """A level as it stands in the JSON of an enclave identity or a TDX module identity."""

    tcb: _IsvSvn


class _Component(msgspec.Struct):
    svn: U8
    category: str | None = None
    type: str | None = None


_Sixteen = Annotated[list[_Component], msgspec.Meta(min_length=16, max_length=16)]
_FLAT_COMPONENTS = tuple(f"sgxtcbcomp{number:02d}svn" for number in range(1, 17))
_FlatTcb: Any = msgspec.defstruct("_FlatTcb", [*((name, U8) for name in _FLAT_COMPONENTS), ("pcesvn", U16)])


class _ListedTcb(msgspec.Struct):
    sgxtcbcomponents: _Sixteen
    pcesvn: U16
    tdxtcbcomponents: _Sixteen | None = None


class LevelV2Json(_Judged, kw_only=True):
    """A level of a TCB info of version 2."""

    tcb: _FlatTcb


class LevelV3Json(_Judged, kw_only=True):
    """A level of a TCB info of version 3."""

    tcb: _ListedTcb


def levels_v2(found: Sequence[LevelV2Json], structure: str) -> tuple[TcbLevel, ...]:
    """Levels of a TCB info of version 2, highest first."""
    levels = []
    for index, level in enumerate(found):
        sgx = tuple(TcbComponent(getattr(level.tcb, name)) for name in _FLAT_COMPONENTS)
        levels.append(_level(level, level.tcb.pcesvn, sgx, None, (structure, f"tcbLevels[{index}]")))
    return _sorted_levels(levels, structure)


def levels_v3(found: Sequence[LevelV3Json], structure: str, *, tdx: bool) -> tuple[TcbLevel, ...]:
    """Levels of a TCB info of version 3, highest first; with the TDX components for a TCB info of TDX."""
    levels = []
    for index, level in enumerate(found):
        where = structure, f"tcbLevels[{index}]"
        details = _tdx_components(level.tcb, *where) if tdx else None
        levels.append(_level(level, level.tcb.pcesvn, _components(level.tcb.sgxtcbcomponents), details, where))
    return _sorted_levels(levels, structure)


def isv_svn_levels(
    found: Sequence[IsvSvnLevelJson], statuses: frozenset[TcbStatus], structure: str, field: str
) -> tuple[IsvSvnLevel, ...]:
    """Levels of an enclave or a TDX module, highest first; none at all or one ISVSVN twice is a `FormatError`.

    So is a status that is not one of `statuses`.
    """
    if not found:
        raise FormatError("is empty", structure=structure, field=field)
    levels = [
        IsvSvnLevel(level.tcb.isvsvn, *_judgement(level, statuses, structure, f"{field}[{index}]"))
        for index, level in enumerate(found)
    ]
    if len({level.isv_svn for level in levels}) != len(levels):
        raise FormatError("lists one ISVSVN twice", structure=structure, field=field)
    return tuple(sorted(levels, key=lambda level: level.isv_svn, reverse=True))


def _components(found: Sequence[_Component]) -> tuple[TcbComponent, ...]:
    return tuple(TcbComponent(component.svn, component.category, component.type) for component in found)


def _svns(components: Sequence[TcbComponent]) -> tuple[int, ...]:
    return tuple(component.svn for component in components)


def _tdx_components(tcb: _ListedTcb, structure: str, where: str) -> tuple[TcbComponent, ...]:
    if tcb.tdxtcbcomponents is None:
        raise FormatError("is required for TDX", structure=structure, field=f"{where}.tcb.tdxtcbcomponents")
    return _components(tcb.tdxtcbcomponents)


def _level(
    judged: _Judged,
    pce_svn: int,
    sgx: tuple[TcbComponent, ...],
    tdx: tuple[TcbComponent, ...] | None,
    where: tuple[str, str],
) -> TcbLevel:
    date, status, advisories = _judgement(judged, _PLATFORM_STATUSES, *where)
    return TcbLevel(
        sgx_components=_svns(sgx),
        pce_svn=pce_svn,
        tdx_components=None if tdx is None else _svns(tdx),
        tcb_date=date,
        tcb_status=status,
        advisory_ids=advisories,
        components=sgx,
        tdx_component_details=tdx,
    )


def _judgement(
    found: _Judged, statuses: frozenset[TcbStatus], structure: str, where: str
) -> tuple[datetime, TcbStatus, tuple[str, ...]]:
    if found.status not in statuses:
        raise FormatError(f"{found.status} is not a status of it", structure=structure, field=f"{where}.tcbStatus")
    date = signed_json.parse_date(found.date, structure, f"{where}.tcbDate")
    return date, found.status, tuple(found.advisory_ids)


def _sorted_levels(levels: Sequence[TcbLevel], structure: str) -> tuple[TcbLevel, ...]:
    if not levels:
        raise FormatError("is empty", structure=structure, field="tcbLevels")
    # The first level that is low enough is the platform's, so the order is part of the meaning; Intel's library
    # sorts as well, and refuses a TCB that is listed twice, because its status would depend on the order.
    ordered = sorted(levels, key=_tcb_of, reverse=True)
    for higher, lower in pairwise(ordered):
        if _tcb_of(higher) == _tcb_of(lower):
            raise FormatError("lists one TCB twice", structure=structure, field="tcbLevels")
    return tuple(ordered)


def _tcb_of(level: TcbLevel) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    return level.sgx_components, level.pce_svn, level.tdx_components or ()
