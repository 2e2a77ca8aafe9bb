"""Requests and responses of EPID and of launch control, which no machine of today needs and some clients still send.

What fields mean is said in `aesm_messages`.
"""

from __future__ import annotations

from dataclasses import dataclass

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
