"""Why a platform is not up to date: which SVN is too low for the best level, and who can raise it.

Source: Intel SGX PCS documentation, TCB info v3: `category` and `type` of a TCB component.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from confcom.formats.pck_extension import PckTcb
from confcom.formats.tcb_info import TcbComponent, TcbInfo, TcbLevel, TcbStatus

_CATEGORY_ADVICE = {
    "BIOS": "update the BIOS",
    "OS/VMM": "update what the operating system loads (microcode, TDX module)",
}
_DEFAULT_ADVICE = "update BIOS and microcode"

_BEST = (TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED, TcbStatus.CONFIGURATION_NEEDED)


@dataclass(frozen=True, slots=True)
class Shortfall:
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
