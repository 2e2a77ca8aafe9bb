"""Explains Intel's signed JSON, and whole sets of collateral in one JSON document (dcap.md §3.2 to §3.4)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from confcom.appraisal.collateral import CollateralJson
from confcom.appraisal.inspection.items import Item, attempt, bytes_item, group, listing, time_item, words
from confcom.appraisal.inspection.pki import certificates_of_pem, chain_item, crl_items
from confcom.errors import FormatError
from confcom.formats.sgx import Attributes
from confcom.formats.tcb_info import (
    EnclaveIdentity,
    EnclaveIdentityId,
    IsvSvnLevel,
    SignedEnclaveIdentity,
    SignedTcbInfo,
    TcbInfo,
    TcbLevel,
    TcbStatus,
)

_STATUSES = {
    TcbStatus.UP_TO_DATE: "nothing is left to do",
    TcbStatus.SW_HARDENING_NEEDED: "the enclave's own code must mitigate what is open",
    TcbStatus.CONFIGURATION_NEEDED: "the machine's configuration leaves something open",
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: "configuration and the enclave's own code leave something open",
    TcbStatus.OUT_OF_DATE: "updates are missing",
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: "updates are missing, and the configuration leaves something open",
    TcbStatus.REVOKED: "must not be trusted",
}
_ENCLAVES = {
    EnclaveIdentityId.QE: "quoting enclave for SGX",
    EnclaveIdentityId.TD_QE: "quoting enclave for TDX",
    EnclaveIdentityId.QVE: "quote verification enclave",
    EnclaveIdentityId.QAE: "quote appraisal enclave",
}
_SIGNED = "r‖s by Intel's TCB signing key, over the exact bytes of the inner object"


def signed_tcb_info_items(signed: SignedTcbInfo) -> tuple[Item, ...]:
    """A TCB info with its signature."""
    return (*tcb_info_items(signed.tcb_info()), bytes_item("signature", signed.signature, _SIGNED))


def tcb_info_items(info: TcbInfo) -> tuple[Item, ...]:
    """A TCB info: for which platforms, of when, and its levels from the highest down."""
    return (
        Item("id", info.id),
        Item("version", info.version),
        time_item("issue_date", info.issue_date),
        time_item("next_update", info.next_update, "to be replaced by then"),
        bytes_item("fmspc", info.fmspc, "for PCK certificates with this FMSPC"),
        bytes_item("pce_id", info.pce_id, "and this PCE-ID"),
        Item("tcb_type", info.tcb_type),
        Item("tcb_evaluation_data_number", info.tcb_evaluation_data_number, "counts up with every TCB recovery"),
        *_tdx_modules(info),
        listing("tcb_levels", map(_level, info.tcb_levels), "highest first; the first that is low enough applies"),
    )


def _tdx_modules(info: TcbInfo) -> Iterable[Item]:
    if info.tdx_module is not None:
        module = info.tdx_module
        yield group(
            "tdx_module",
            [
                bytes_item("mr_signer", module.mr_signer, "zero means Intel"),
                bytes_item("attributes", module.attributes),
                bytes_item("attributes_mask", module.attributes_mask),
            ],
            "TDX module of major version 0",
        )
    if info.tdx_module_identities:
        members = (
            group(
                "",
                [
                    Item("id", identity.id),
                    bytes_item("mr_signer", identity.mr_signer, "zero means Intel"),
                    bytes_item("attributes", identity.attributes),
                    bytes_item("attributes_mask", identity.attributes_mask),
                    listing("tcb_levels", map(_isv_svn_level, identity.tcb_levels)),
                ],
                identity.id,
            )
            for identity in info.tdx_module_identities
        )
        yield listing("tdx_module_identities", members, "TDX modules of later major versions")


def _level(level: TcbLevel) -> Item:
    items = [*_judgement(level), words("sgx_components", level.sgx_components), Item("pce_svn", level.pce_svn)]
    if level.tdx_components is not None:
        items.append(words("tdx_components", level.tdx_components))
    return group("", items, f"{level.tcb_status} of {level.tcb_date:%Y-%m-%d}")


def _isv_svn_level(level: IsvSvnLevel) -> Item:
    items = [Item("isv_svn", level.isv_svn), *_judgement(level)]
    return group("", items, f"ISVSVN {level.isv_svn} and higher: {level.tcb_status} of {level.tcb_date:%Y-%m-%d}")


def _judgement(level: TcbLevel | IsvSvnLevel) -> Iterable[Item]:
    yield Item("tcb_status", level.tcb_status.value, _STATUSES[level.tcb_status])
    yield time_item("tcb_date", level.tcb_date, "what was known then is fixed in it")
    yield words("advisory_ids", level.advisory_ids, "what is open")


def signed_identity_items(signed: SignedEnclaveIdentity) -> tuple[Item, ...]:
    """An enclave identity with its signature."""
    return (*identity_items(signed.enclave_identity()), bytes_item("signature", signed.signature, _SIGNED))


def identity_items(identity: EnclaveIdentity) -> tuple[Item, ...]:
    """An enclave identity: what a legitimate one looks like, and its levels from the highest down."""
    flags = ", ".join(Attributes.parse(identity.attributes).flag_names)
    return (
        Item("id", identity.id.value, _ENCLAVES[identity.id]),
        Item("version", identity.version),
        time_item("issue_date", identity.issue_date),
        time_item("next_update", identity.next_update, "to be replaced by then"),
        Item("tcb_evaluation_data_number", identity.tcb_evaluation_data_number, "counts up with every TCB recovery"),
        bytes_item("mr_signer", identity.mr_signer, "MRSIGNER that it must have"),
        Item("isv_prod_id", identity.isv_prod_id, "ISVPRODID that it must have"),
        bytes_item("misc_select", identity.misc_select),
        bytes_item("misc_select_mask", identity.misc_select_mask, "bits that must agree"),
        bytes_item("attributes", identity.attributes, f"flags: {flags}"),
        bytes_item("attributes_mask", identity.attributes_mask, "bits that must agree"),
        listing("tcb_levels", map(_isv_svn_level, identity.tcb_levels), "highest first"),
    )


_COLLATERAL_JSON = msgspec.json.Decoder(CollateralJson)


def collateral_items(data: bytes) -> tuple[Item, ...]:
    """A set of collateral; a part that cannot be read does not hide the others."""
    try:
        found = _COLLATERAL_JSON.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a set of collateral: {error}", structure="collateral", field="") from error
    return (
        _chain("pck_crl_issuer_chain", found.pck_crl_issuer_chain),
        _crl("root_ca_crl", found.root_ca_crl),
        _crl("pck_crl", found.pck_crl),
        _chain("tcb_info_issuer_chain", found.tcb_info_issuer_chain),
        attempt("tcb_info", lambda: _tcb_info(found)),
        _chain("qe_identity_issuer_chain", found.qe_identity_issuer_chain),
        attempt("qe_identity", lambda: _qe_identity(found)),
        *([_chain("pck_certificate_chain", found.pck_certificate_chain)] if found.pck_certificate_chain else []),
    )


def _chain(name: str, text: str) -> Item:
    return attempt(name, lambda: chain_item(name, certificates_of_pem(text.encode())))


def _crl(name: str, text: str) -> Item:
    return attempt(name, lambda: group(name, crl_items(text.encode())))


def _tcb_info(found: CollateralJson) -> Item:
    signed = SignedTcbInfo(found.tcb_info.encode(), _signature(found.tcb_info_signature, "tcb_info_signature"))
    return group("tcb_info", signed_tcb_info_items(signed))


def _qe_identity(found: CollateralJson) -> Item:
    signature = _signature(found.qe_identity_signature, "qe_identity_signature")
    return group("qe_identity", signed_identity_items(SignedEnclaveIdentity(found.qe_identity.encode(), signature)))


def _signature(text: str, field: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError("is not hexadecimal", structure="collateral", field=field) from error
