"""TCB levels: which one a platform, its QE and its TDX module are at, and what that makes together.

Source: Intel SGX PCS documentation, "Get TCB Info" (how to determine the TCB status), and Intel's quote verification
library. The SVNs of the platform come from its PCK certificate, never from a report or the quote's header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from operator import ge

import msgspec

from confcom.formats.enclave_identity import EnclaveIdentity
from confcom.formats.pck_extension import PckTcb
from confcom.formats.tcb_info import IsvSvnLevel, TcbComponent, TcbInfo, TcbLevel, TcbStatus, TdxModuleIdentity


class TcbEvaluation(msgspec.Struct, frozen=True):
    """The converged result. `status` is None when no level of the platform, QE or module matches (TCB_NOT_SUPPORTED).

    `tcb_date` is the oldest date of the levels that matched, `advisory_ids` the union of theirs, sorted. A TD of TDX
    1.5 is judged by the module that launched it and by the one that runs now: `launch` and `current` are these two
    results, `platform` and `tdx_module` the levels of the launch.
    """

    status: TcbStatus | None
    tcb_date: datetime | None
    advisory_ids: tuple[str, ...]
    platform: TcbLevel | None
    qe: IsvSvnLevel | None
    tdx_module: IsvSvnLevel | None = None
    launch: TcbEvaluation | None = None
    current: TcbEvaluation | None = None

    @property
    def missing(self) -> str:
        """Which part has no matching level; empty when all have."""
        if self.current is not None and self.launch is not None and not self.launch.missing:
            return f"{self.current.missing}, judged by the TDX module that runs now" if self.current.missing else ""
        if self.platform is None:
            return "platform"
        return "QE" if self.qe is None else "" if self.status is not None else "TDX module"


# What a status says, taken apart: out of date, configuration needed, software hardening needed.
_PARTS: dict[TcbStatus, frozenset[str]] = {
    TcbStatus.UP_TO_DATE: frozenset(),
    TcbStatus.SW_HARDENING_NEEDED: frozenset({"hardening"}),
    TcbStatus.CONFIGURATION_NEEDED: frozenset({"configuration"}),
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: frozenset({"configuration", "hardening"}),
    TcbStatus.OUT_OF_DATE: frozenset({"old"}),
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: frozenset({"old", "configuration"}),
}
_WHOLE = {parts: status for status, parts in _PARTS.items()}


@lru_cache(64)
def converge(*statuses: TcbStatus) -> TcbStatus:
    """The status of platform, QE and TDX module together (Intel's convergence table)."""
    if TcbStatus.REVOKED in statuses:
        return TcbStatus.REVOKED
    parts = frozenset[str]().union(*(_PARTS[status] for status in statuses))
    # Intel has no status for "out of date and hardening needed": being out of date says it all.
    return _WHOLE[parts - {"hardening"} if "old" in parts else parts]


def match_platform(pck: PckTcb, tee_tcb_svn: bytes | None, tcb_info: TcbInfo) -> TcbLevel | None:
    """The first (highest) level that the platform reaches in every component.

    `tee_tcb_svn` (16 bytes) is a TD's; its first two bytes belong to the TDX module and are judged by the module's
    identity when the module's version, byte 1, is above 0.
    """
    first = 2 if tee_tcb_svn is not None and tee_tcb_svn[1] > 0 else 0
    for level in tcb_info.tcb_levels:
        if pck.pce_svn < level.pce_svn or not _reaches(pck.sgx_components, level.sgx_components):
            continue
        if tee_tcb_svn is None:
            return level
        if level.tdx_components is not None and _reaches(tee_tcb_svn[first:], level.tdx_components[first:]):
            return level
    return None


def match_isv_svn(isv_svn: int, levels: Sequence[IsvSvnLevel]) -> IsvSvnLevel | None:
    """The highest level with an ISVSVN that the enclave reaches; `levels` are sorted descending."""
    return next((level for level in levels if level.isv_svn <= isv_svn), None)


def evaluate_sgx(pck: PckTcb, qe_isv_svn: int, tcb_info: TcbInfo, qe_identity: EnclaveIdentity) -> TcbEvaluation:
    """TCB status of an SGX platform and its QE."""
    platform = match_platform(pck, None, tcb_info)
    return _combine(platform, match_isv_svn(qe_isv_svn, qe_identity.tcb_levels))


def evaluate_tdx(
    pck: PckTcb,
    qe_isv_svn: int,
    tee_tcb_svn: bytes,
    tcb_info: TcbInfo,
    qe_identity: EnclaveIdentity,
    module: TdxModuleIdentity | None,
) -> TcbEvaluation:
    """TCB status of a TDX platform, its QE and, above version 0, its TDX module."""
    platform = match_platform(pck, tee_tcb_svn, tcb_info)
    qe = match_isv_svn(qe_isv_svn, qe_identity.tcb_levels)
    if module is None:
        return _combine(platform, qe)
    level = match_isv_svn(tee_tcb_svn[0], module.tcb_levels)
    if level is None:
        return TcbEvaluation(None, None, (), platform, qe)
    return _combine(platform, qe, level)


def relaunch(launch: TcbEvaluation, current: TcbEvaluation) -> TcbEvaluation:
    """Combine the status of a TD at its launch with that of the module that runs now (TD-preserving update).

    A module that is Revoked or below every level is so for the TD, whenever it ran. Where only the launch is out of
    date, starting the TD again would heal it: that is what the status then says. Otherwise the launch status stands.
    """
    both = launch, current
    status = _relaunch_status(launch.status, current.status)
    dates = [one.tcb_date for one in both if one.tcb_date is not None]
    return TcbEvaluation(
        status=status,
        tcb_date=None if status is None else min(dates, default=None),
        advisory_ids=() if status is None else _together([one.advisory_ids for one in both]),
        platform=launch.platform,
        qe=launch.qe,
        tdx_module=launch.tdx_module,
        launch=launch,
        current=current,
    )


def _relaunch_status(launch: TcbStatus | None, current: TcbStatus | None) -> TcbStatus | None:
    if TcbStatus.REVOKED in (launch, current):
        return TcbStatus.REVOKED
    if launch is None or current is None:
        return None
    before, now = _PARTS[launch], _PARTS[current]
    if "old" not in before or "old" in now:
        return launch
    if "configuration" in before | now:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED


def _combine(platform: TcbLevel | None, qe: IsvSvnLevel | None, module: IsvSvnLevel | None = None) -> TcbEvaluation:
    if platform is None or qe is None:
        return TcbEvaluation(None, None, (), platform, qe, module)
    levels = (platform, qe) if module is None else (platform, qe, module)
    return TcbEvaluation(
        status=converge(*[level.tcb_status for level in levels]),
        tcb_date=min([level.tcb_date for level in levels]),
        advisory_ids=_together([level.advisory_ids for level in levels]),
        platform=platform,
        qe=qe,
        tdx_module=module,
    )


def _together(advisories: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*advisories)))


def _reaches(svns: Sequence[int], level: Sequence[int]) -> bool:
    return all(map(ge, svns, level))


# Why a platform is not up to date: which SVN is too low for the best level, and who can raise it.
#
# Source: Intel SGX PCS documentation, TCB info v3: `category` and `type` of a TCB component.


_CATEGORY_ADVICE = {
    "BIOS": "update the BIOS",
    "OS/VMM": "update what the operating system loads (microcode, TDX module)",
}
_DEFAULT_ADVICE = "update BIOS and microcode"

_BEST = (TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED, TcbStatus.CONFIGURATION_NEEDED)


class Shortfall(msgspec.Struct, frozen=True):
    """One SVN below what a level needs; `name` has Intel's words, as `SGX component 3 (OS/VMM, TXT SINIT)`."""

    name: str
    found: int
    needed: int
    level_status: TcbStatus
    level_date: datetime
    advice: str

    def sentence(self) -> str:
        """The shortfall in words."""
        return (
            f"{self.name}: is {self.found}, level {self.level_status.value} of {self.level_date:%Y-%m} "
            f"needs {self.needed}: {self.advice}"
        )


def shortfalls(pck: PckTcb, tee_tcb_svn: bytes | None, tcb_info: TcbInfo) -> tuple[Shortfall, ...]:
    """What is missing for the best level of the TCB info; `tee_tcb_svn` (16 bytes) is a TD's. Empty at that level."""
    level = _best_level(tcb_info)
    if level is None:
        return ()
    return tuple(_below(level, pck, tee_tcb_svn))


def _best_level(tcb_info: TcbInfo) -> TcbLevel | None:
    for status in _BEST:
        # Levels are sorted descending: the last of a status is the least that it takes.
        found = [level for level in tcb_info.tcb_levels if level.tcb_status is status]
        if found:
            return found[-1]
    return None


def _below(level: TcbLevel, pck: PckTcb, tee_tcb_svn: bytes | None) -> Iterator[Shortfall]:
    yield from _components("SGX", pck.sgx_components, level.sgx_components, level.components, level)
    if pck.pce_svn < level.pce_svn:
        advice = "update the platform software (PCE), then fetch a new PCK certificate"
        yield Shortfall("PCE SVN", pck.pce_svn, level.pce_svn, level.tcb_status, level.tcb_date, advice)
    if tee_tcb_svn is not None and level.tdx_components is not None:
        # The first two belong to the TDX module, which has levels of its own above version 0.
        first = 2 if tee_tcb_svn[1] > 0 else 0
        details = level.tdx_component_details or ()
        yield from _components("TDX", tee_tcb_svn, level.tdx_components, details, level, first)


def _components(
    tee: str,
    svns: Sequence[int],
    needed: Sequence[int],
    details: Sequence[TcbComponent],
    level: TcbLevel,
    first: int = 0,
) -> Iterator[Shortfall]:
    for index in range(first, len(needed)):
        if svns[index] >= needed[index]:
            continue
        detail = details[index] if index < len(details) else TcbComponent(needed[index])
        words = ", ".join(word for word in (detail.category, detail.type) if word)
        name = f"{tee} component {index + 1}" + (f" ({words})" if words else "")
        advice = _CATEGORY_ADVICE.get(detail.category or "", _DEFAULT_ADVICE)
        yield Shortfall(name, svns[index], needed[index], level.tcb_status, level.tcb_date, advice)
