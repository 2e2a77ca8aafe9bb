"""Is the enclave that vouches for the attestation key really Intel's QE? Fields of its report against the QE identity.

Source: Intel SGX PCS documentation, "Get QE Identity" (how to verify). ISVSVN is judged by TCB levels, not here.
"""

from __future__ import annotations

from confcom.errors import MismatchError
from confcom.formats.enclave_identity import EnclaveIdentity, EnclaveIdentityId
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbInfo, TdxModuleIdentity
from confcom.formats.tdx import TdReportBody, TdReportBody10, td_base

QE_IDENTITY_STEP = "qe-identity"
TDX_MODULE_STEP = "tdx-module-identity"

IDENTITY_OF = {TeeType.SGX: EnclaveIdentityId.QE, TeeType.TDX: EnclaveIdentityId.TD_QE}
"""Which identity describes the quoting enclave of a kind of evidence."""


def match_qe_identity(report: ReportBody, identity: EnclaveIdentity) -> None:
    """Raise `MismatchError` naming the first field of the QE report that the identity does not allow."""
    comparisons = (
        (
            "MISCSELECT",
            identity.misc_select,
            _mask(report.misc_select.to_bytes(4, "little"), identity.misc_select_mask),
        ),
        ("ATTRIBUTES", identity.attributes, _mask(bytes(report.attributes), identity.attributes_mask)),
        ("MRSIGNER", identity.mr_signer, report.mr_signer),
    )
    for name, expected, found in comparisons:
        if expected != found:
            raise _mismatch(name, expected.hex(), found.hex())
    if identity.isv_prod_id != report.isv_prod_id:
        raise _mismatch("ISVPRODID", str(identity.isv_prod_id), str(report.isv_prod_id))


def match_tdx_modules(body: TdReportBody, tcb_info: TcbInfo) -> tuple[TdxModuleIdentity | None, ...]:
    """The identities of the TDX module that launched the TD and, for TDX 1.5, of the one that runs now.

    None for version 0, which has no TCB levels of its own. MRSIGNERSEAM and SEAMATTRIBUTES are those of the launch;
    every byte of SEAMATTRIBUTES must be zero, whatever a mask may allow.
    """
    td = td_base(body)
    launch = _find_tdx_module("TDX module", td.module_version, tcb_info)
    expected = launch or tcb_info.tdx_module
    if expected is None:
        raise _module_mismatch("TDX module", "version", "a tdxModule in the TCB info", "0")
    if td.mr_signer_seam != expected.mr_signer:
        raise _module_mismatch("TDX module", "MRSIGNERSEAM", expected.mr_signer.hex(), td.mr_signer_seam.hex())
    if td.seam_attributes != expected.attributes or any(td.seam_attributes):
        raise _module_mismatch("TDX module", "SEAMATTRIBUTES", expected.attributes.hex(), td.seam_attributes.hex())
    if isinstance(body, TdReportBody10):
        return (launch,)
    return launch, _find_tdx_module("TDX module that runs now", body.tee_tcb_svn2[1], tcb_info)


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
