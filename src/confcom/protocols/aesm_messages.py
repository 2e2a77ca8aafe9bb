"""Requests and responses of the AESM socket as values, one class each.

Fields carry the names of `proto/aesm.proto`. None means that the field is not on the wire, which is not the same as
zero or empty there. `timeout` is in a unit that differs from client to client; nobody looks at it. Sizes are in bytes.
`status` of a response is its errorCode. Those of EPID and launch control are in `aesm_legacy_messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from confcom.protocols.aesm_legacy_messages import (
    CheckUpdateStatusRequest,
    CheckUpdateStatusResponse,
    GetLaunchTokenRequest,
    GetLaunchTokenResponse,
    GetQuoteRequest,
    GetQuoteResponse,
    GetWhiteListRequest,
    GetWhiteListResponse,
    GetWhiteListSizeRequest,
    GetWhiteListSizeResponse,
    InitQuoteRequest,
    InitQuoteResponse,
    ReportAttestationErrorRequest,
    ReportAttestationErrorResponse,
    SgxGetExtendedEpidGroupIdRequest,
    SgxGetExtendedEpidGroupIdResponse,
    SgxRegisterRequest,
    SgxRegisterResponse,
    SgxSwitchExtendedEpidGroupRequest,
    SgxSwitchExtendedEpidGroupResponse,
)
from confcom.protocols.aesm_status import AesmStatus


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
