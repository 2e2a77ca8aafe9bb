"""Requests and responses of the AESM socket as values, one class each.

Fields carry the names of `proto/aesm.proto`. None means that the field is not on the wire, which is not the same as
zero or empty there. `timeout` is in a unit that differs from client to client; nobody looks at it. Sizes are in bytes.
`status` of a response is its errorCode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from confcom.protocols.aesm_status import AesmStatus


@dataclass(frozen=True, slots=True)
class InitQuoteRequest:
    """1, EPID: whom to make reports for."""

    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class InitQuoteResponse:
    """1."""

    status: AesmStatus
    target_info: bytes | None = None
    gid: bytes | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteRequest:
    """2, EPID: a quote."""

    report: bytes
    quote_type: int
    spid: bytes
    buf_size: int
    nonce: bytes | None = None
    sig_rl: bytes | None = None
    qe_report: bool | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteResponse:
    """2."""

    status: AesmStatus
    quote: bytes | None = None
    qe_report: bytes | None = None


@dataclass(frozen=True, slots=True)
class GetLaunchTokenRequest:
    """3: a launch token, for machines without flexible launch control. `mr_signer` is the 384-byte modulus."""

    mr_enclave: bytes
    mr_signer: bytes
    se_attributes: bytes
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetLaunchTokenResponse:
    """3."""

    status: AesmStatus
    token: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReportAttestationErrorRequest:
    """4, EPID: what to update after a failed attestation."""

    platform_info: bytes
    attestation_error_code: int
    update_info_size: int
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class ReportAttestationErrorResponse:
    """4."""

    status: AesmStatus
    platform_update_info: bytes | None = None


@dataclass(frozen=True, slots=True)
class GetWhiteListSizeRequest:
    """10: size of the launch white list."""

    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetWhiteListSizeResponse:
    """10."""

    status: AesmStatus
    white_list_size: int | None = None


@dataclass(frozen=True, slots=True)
class GetWhiteListRequest:
    """11: the launch white list."""

    white_list_size: int | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetWhiteListResponse:
    """11."""

    status: AesmStatus
    white_list: bytes | None = None


@dataclass(frozen=True, slots=True)
class SgxGetExtendedEpidGroupIdRequest:
    """12, EPID: the extended group."""

    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class SgxGetExtendedEpidGroupIdResponse:
    """12."""

    status: AesmStatus
    x_group_id: int | None = None


@dataclass(frozen=True, slots=True)
class SgxSwitchExtendedEpidGroupRequest:
    """13, EPID: choose the extended group."""

    x_group_id: int | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class SgxSwitchExtendedEpidGroupResponse:
    """13."""

    status: AesmStatus


@dataclass(frozen=True, slots=True)
class SgxRegisterRequest:
    """14: hand in a white list (`data_type` 0)."""

    buf: bytes
    data_type: int
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class SgxRegisterResponse:
    """14."""

    status: AesmStatus


@dataclass(frozen=True, slots=True)
class InitQuoteExRequest:
    """15: the QE's target info (512) and, when `b_pub_key_id`, the id of its attestation key into `buf_size` bytes."""

    b_pub_key_id: bool
    att_key_id: bytes | None = None
    buf_size: int | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class InitQuoteExResponse:
    """15. Intel's client copies a `pub_key_id` that it did not ask for to a null pointer."""

    status: AesmStatus
    target_info: bytes | None = None
    pub_key_id_size: int | None = None
    pub_key_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteSizeExRequest:
    """16: the exact size of the next quote."""

    att_key_id: bytes | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteSizeExResponse:
    """16."""

    status: AesmStatus
    quote_size: int | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteExRequest:
    """17: a quote over `report` (432), at most `buf_size` long; `qe_report_info` (960) asks for a QE report too."""

    report: bytes
    buf_size: int
    att_key_id: bytes | None = None
    qe_report_info: bytes | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetQuoteExResponse:
    """17."""

    status: AesmStatus
    quote: bytes | None = None
    qe_report_info: bytes | None = None


@dataclass(frozen=True, slots=True)
class CheckUpdateStatusRequest:
    """18, EPID: whether the platform needs an update."""

    update_info_size: int
    config: int
    platform_info: bytes | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class CheckUpdateStatusResponse:
    """18. `update_status` is `status` on the wire."""

    status: AesmStatus
    platform_update_info: bytes | None = None
    update_status: int | None = None


@dataclass(frozen=True, slots=True)
class SelectAttKeyIdRequest:
    """19: which of the caller's key ids the service can use."""

    att_key_id_list: bytes | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class SelectAttKeyIdResponse:
    """19: one id (256), as the caller wrote it."""

    status: AesmStatus
    selected_att_key_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class GetSupportedAttKeyIdNumRequest:
    """21: how many key ids there are."""

    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetSupportedAttKeyIdNumResponse:
    """21."""

    status: AesmStatus
    att_key_id_num: int | None = None


@dataclass(frozen=True, slots=True)
class GetSupportedAttKeyIdsRequest:
    """22: the key ids, into exactly `buf_size` bytes."""

    buf_size: int
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class GetSupportedAttKeyIdsResponse:
    """22."""

    status: AesmStatus
    att_key_ids: bytes | None = None


Request: TypeAlias = (
    InitQuoteRequest | GetQuoteRequest | GetLaunchTokenRequest | ReportAttestationErrorRequest | GetWhiteListSizeRequest
    | GetWhiteListRequest | SgxGetExtendedEpidGroupIdRequest | SgxSwitchExtendedEpidGroupRequest | SgxRegisterRequest
    | InitQuoteExRequest | GetQuoteSizeExRequest | GetQuoteExRequest | CheckUpdateStatusRequest | SelectAttKeyIdRequest
    | GetSupportedAttKeyIdNumRequest | GetSupportedAttKeyIdsRequest
)  # fmt: skip
Response: TypeAlias = (
    InitQuoteResponse | GetQuoteResponse | GetLaunchTokenResponse | ReportAttestationErrorResponse
    | GetWhiteListSizeResponse | GetWhiteListResponse | SgxGetExtendedEpidGroupIdResponse
    | SgxSwitchExtendedEpidGroupResponse | SgxRegisterResponse | InitQuoteExResponse | GetQuoteSizeExResponse
    | GetQuoteExResponse | CheckUpdateStatusResponse | SelectAttKeyIdResponse | GetSupportedAttKeyIdNumResponse
    | GetSupportedAttKeyIdsResponse
)  # fmt: skip
