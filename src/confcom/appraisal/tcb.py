"""Matches QE and TDX module with Intel's identities, finds their TCB levels and the platform's, and converges them.

Source: Intel SGX PCS documentation, "Get TCB Info" (how to determine the TCB status) and "Get QE Identity" (how to
verify), and Intel's quote verification library. The SVNs of the platform come from its PCK certificate, never from a
report or the quote's header. The ISVSVN of an enclave is judged by TCB levels, its other fields by the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import ge
from typing import TYPE_CHECKING

import msgspec

from confcom.appraisal.findings import Check, finding
from confcom.errors import MismatchError
from confcom.formats.pck_extension import PckTcb
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody, TdReportBody, TdReportBody10, TdReportBody15, td_base
from confcom.formats.tcb_info import (
    EnclaveIdentity,
    EnclaveIdentityId,
    IsvSvnLevel,
    TcbComponent,
    TcbInfo,
    TcbLevel,
    TcbStatus,
    TdxModuleIdentity,
)

if TYPE_CHECKING:
    from confcom.appraisal.quote import VerifiedQuote


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

    @property
    def behind(self) -> str:
        """What has to be updated where something is out of date or below every level, for advice."""
        if self.status is None and self.current and self.launch and not self.launch.missing:
            return self.current.behind
        if self.platform is None or "OutOfDate" in self.platform.tcb_status:
            return "BIOS and microcode of the platform and let it fetch a new PCK certificate"
        return "the quoting enclave" if self.qe is None or "OutOfDate" in self.qe.tcb_status else "the TDX module"


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
    parts = frozenset[str]().union(*map(_PARTS.__getitem__, statuses))
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


def _tee_tcb_svns(verified: VerifiedQuote) -> tuple[bytes | None, ...]:
    """Of a TD: at launch and, for TDX 1.5, now."""
    body = verified.quote.body
    if isinstance(body, ReportBody):
        return (None,)
    launch = td_base(body).tee_tcb_svn
    return (launch,) if isinstance(body, TdReportBody10) else (launch, body.tee_tcb_svn2)


def describe_tcb(tcb: TcbEvaluation) -> str:
    """Status, date and advisories of an evaluation, in words."""
    if tcb.status is None:
        return f"no TCB level of Intel's list is as low as this {tcb.missing}"
    found = f"{tcb.status.value}, level of {tcb.tcb_date and tcb.tcb_date.date()}"
    return f"{found}, advisories {', '.join(tcb.advisory_ids)}" if tcb.advisory_ids else found


def explain_tcb(verified: VerifiedQuote) -> Iterator[Check]:
    """Findings of what is too low: SVNs, those at launch and now once; the QE and the TDX modules."""
    info = verified.collateral.tcb_info
    too_low = (shortfalls(verified.pck.tcb, svns, info) for svns in _tee_tcb_svns(verified))
    for item in dict.fromkeys(chain.from_iterable(too_low)):
        expected = f"{item.name} at least {item.needed}, for {item.level_status.value} of {item.level_date:%Y-%m-%d}"
        yield finding("tcb-component", False, expected, f"{item.found}", item.sentence())
    tcb, qe_report = verified.tcb, verified.quote.signature.certification.qe_report
    if tcb.qe is None or tcb.qe.tcb_status is not TcbStatus.UP_TO_DATE:
        best = verified.collateral.qe_identity.tcb_levels[0].isv_svn
        where = ": on a node, the quote helper; in-proc, the application's image" if verified.tee is TeeType.SGX else ""
        advice = f"Update the quoting enclave{where}."
        yield finding("qe-isv-svn", False, f"quoting enclave's ISVSVN {best}", str(qe_report.isv_svn), advice)
    for what, evaluation in (("TDX module", tcb), ("TDX module that runs now", tcb.current)):
        level = evaluation.tdx_module if evaluation else None
        if level is not None and level.tcb_status is not TcbStatus.UP_TO_DATE:
            found = f"level {level.isv_svn}, {level.tcb_status.value}"
            yield finding("tdx-module", False, f"a {what} that is up to date", found, "Update the TDX module.")


def tcb_advice(tcb: TcbEvaluation, tee: TeeType) -> str:
    """What to do about a status that a policy does not accept."""
    if tcb.status is TcbStatus.REVOKED:
        return "Intel revoked this TCB level: the platform must not be trusted until it has been updated."
    if tcb.status is None:
        return f"Update {tcb.behind}; nothing accepts this."
    if "OutOfDate" in tcb.status:
        return f"Update {tcb.behind}; until then, accept the status on purpose with --accept-tcb."
    if "Relaunch" in tcb.status:
        return "Start the TD again: the TDX module was updated under it."
    who = "the enclave" if tee is TeeType.SGX else "the TD"
    check, source = ("named advisories", "they say") if tcb.advisory_ids else ("platform", "Intel says of this status")
    return (
        f"Check the {check}: {who} must be hardened or the platform configured as {source}; "
        "then accept the status on purpose with --accept-tcb."
    )


# The enclave that vouches for the attestation key, and the TDX module: fields of their reports.

QE_IDENTITY_STEP = "qe-identity"
TDX_MODULE_STEP = "tdx-module-identity"

IDENTITY_OF = {TeeType.SGX: EnclaveIdentityId.QE, TeeType.TDX: EnclaveIdentityId.TD_QE}
"""Which identity describes the quoting enclave of a kind of evidence."""


# A verification needs few of the fields: reading these from the bytes is faster than parsing all.
_MISC_SELECT, _ATTRIBUTES, _MR_SIGNER, _ISV_PROD_ID = (
    ReportBody.place(name) for name in ("misc_select", "attributes", "mr_signer", "isv_prod_id")
)
_TEE_TCB_SVN, _MR_SIGNER_SEAM, _SEAM_ATTRIBUTES = (
    TdReportBody10.place(name) for name in ("tee_tcb_svn", "mr_signer_seam", "seam_attributes")
)
_TEE_TCB_SVN2 = TdReportBody15.place("tee_tcb_svn2")


def match_qe_identity(report: ReportBody, identity: EnclaveIdentity) -> None:
    """Raise `MismatchError` naming the first field of the QE report that the identity does not allow."""
    raw = bytes(report)
    comparisons = (
        ("MISCSELECT", identity.misc_select, _mask(raw[_MISC_SELECT], identity.misc_select_mask)),
        ("ATTRIBUTES", identity.attributes, _mask(raw[_ATTRIBUTES], identity.attributes_mask)),
        ("MRSIGNER", identity.mr_signer, raw[_MR_SIGNER]),
    )
    for name, expected, found in comparisons:
        if expected != found:
            raise _mismatch(name, expected.hex(), found.hex())
    isv_prod_id = int.from_bytes(raw[_ISV_PROD_ID], "little")
    if identity.isv_prod_id != isv_prod_id:
        raise _mismatch("ISVPRODID", str(identity.isv_prod_id), str(isv_prod_id))


def match_tdx_modules(body: TdReportBody, tcb_info: TcbInfo) -> tuple[TdxModuleIdentity | None, ...]:
    """The identities of the TDX module that launched the TD and, for TDX 1.5, of the one that runs now.

    None for version 0, which has no TCB levels of its own. MRSIGNERSEAM and SEAMATTRIBUTES are those of the launch;
    every byte of SEAMATTRIBUTES must be zero, whatever a mask may allow.
    """
    raw = bytes(body)
    signer, attributes = raw[_MR_SIGNER_SEAM], raw[_SEAM_ATTRIBUTES]
    launch = _find_tdx_module("TDX module", raw[_TEE_TCB_SVN][1], tcb_info)
    expected = launch or tcb_info.tdx_module
    if expected is None:
        raise _module_mismatch("TDX module", "version", "a tdxModule in the TCB info", "0")
    if signer != expected.mr_signer:
        raise _module_mismatch("TDX module", "MRSIGNERSEAM", expected.mr_signer.hex(), signer.hex())
    if attributes != expected.attributes or any(attributes):
        raise _module_mismatch("TDX module", "SEAMATTRIBUTES", expected.attributes.hex(), attributes.hex())
    if isinstance(body, TdReportBody10):
        return (launch,)
    return launch, _find_tdx_module("TDX module that runs now", raw[_TEE_TCB_SVN2][1], tcb_info)


def _find_tdx_module(what: str, version: int, tcb_info: TcbInfo) -> TdxModuleIdentity | None:
    """The identity of a module's major version, compared without case; None for version 0."""
    if version == 0:
        return None
    wanted = f"TDX_{version:02X}"
    for identity in tcb_info.tdx_module_identities:
        if identity.id.upper() == wanted:
            return identity
    known = ", ".join(identity.id for identity in tcb_info.tdx_module_identities) or "none"
    raise _module_mismatch(what, "id", f"one of {known}", wanted)


def _mask(value: bytes, mask: bytes) -> bytes:
    return (int.from_bytes(value) & int.from_bytes(mask)).to_bytes(len(value))


def _mismatch(name: str, expected: str, found: str) -> MismatchError:
    return MismatchError(
        f"the quoting enclave is not the one that Intel describes: {name} is {found}, expected {expected}",
        step=QE_IDENTITY_STEP,
        expected=f"{name} {expected}",
        found=found,
        advice="The quoting enclave is not Intel's: do not trust this evidence.",
    )


def _module_mismatch(what: str, name: str, expected: str, found: str) -> MismatchError:
    return MismatchError(
        f"the {what} is not one that Intel describes: {name} is {found}, expected {expected}",
        step=TDX_MODULE_STEP,
        expected=f"{name} {expected}",
        found=found,
        advice="Fetch newer TCB info for this platform; if that does not help, do not trust the TD.",
    )
