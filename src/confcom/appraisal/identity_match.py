"""Is the enclave that vouches for the attestation key really Intel's QE? Fields of its report against the QE identity.

Source: Intel SGX PCS documentation, "Get QE Identity" (how to verify). ISVSVN is judged by TCB levels, not here.
"""

from __future__ import annotations

from confcom.errors import MismatchError
from confcom.formats.enclave_identity import EnclaveIdentity, EnclaveIdentityId
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbInfo, TdxModuleIdentity
from confcom.formats.tdx import TdReportBody, TdReportBody10, TdReportBody15

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
