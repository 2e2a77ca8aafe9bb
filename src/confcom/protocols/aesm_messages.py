"""Requests and responses of the AESM socket as values, one class each.

Fields carry the names of `proto/aesm.proto`. None means that the field is not on the wire, which is not the same as
zero or empty there. `timeout` is in a unit that differs from client to client; nobody looks at it. Sizes are in bytes.
`status` of a response is its errorCode. Those of EPID and launch control are in `aesm_legacy_messages`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from dataclasses import field as dataclass_field
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols._pb import aesm_pb2 as pb
from confcom.protocols.aesm_status import AesmStatus

# --- Requests and responses of EPID and of launch control, which no machine of today needs and some clien ---
#
# What fields mean is said in `aesm_messages`.


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


# --- Which AESM request is answered by which response under which field number, and both as protobuf ------------------
#
# The table stands in the order in which Intel's service looks for a request, which matters when one message carries
# several.


Value: TypeAlias = bytes | int | None
_Envelope = TypeVar("_Envelope", bound=Message)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One kind of request and its response. `field` is the common part of the two field names of `number`.

    `name` is the one for logs and messages: `GetQuoteEx`.
    """

    number: int
    field: str
    request: type[Request]
    response: type[Response]
    name: str = dataclass_field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.request.__name__.removesuffix("Request"))


EXCHANGES = (
    Exchange(3, "getLicToken", GetLaunchTokenRequest, GetLaunchTokenResponse),
    Exchange(1, "initQuote", InitQuoteRequest, InitQuoteResponse),
    Exchange(2, "getQuote", GetQuoteRequest, GetQuoteResponse),
    Exchange(4, "reportErr", ReportAttestationErrorRequest, ReportAttestationErrorResponse),
    Exchange(18, "checkUpdateStatus", CheckUpdateStatusRequest, CheckUpdateStatusResponse),
    Exchange(10, "getWhiteListSize", GetWhiteListSizeRequest, GetWhiteListSizeResponse),
    Exchange(11, "getWhiteList", GetWhiteListRequest, GetWhiteListResponse),
    Exchange(
        12,
        "sgxGetExtendedEpidGroupId",
        SgxGetExtendedEpidGroupIdRequest,
        SgxGetExtendedEpidGroupIdResponse,
    ),
    Exchange(
        13,
        "sgxSwitchExtendedEpidGroup",
        SgxSwitchExtendedEpidGroupRequest,
        SgxSwitchExtendedEpidGroupResponse,
    ),
    Exchange(14, "sgxRegister", SgxRegisterRequest, SgxRegisterResponse),
    Exchange(15, "initQuoteEx", InitQuoteExRequest, InitQuoteExResponse),
    Exchange(16, "getQuoteSizeEx", GetQuoteSizeExRequest, GetQuoteSizeExResponse),
    Exchange(17, "getQuoteEx", GetQuoteExRequest, GetQuoteExResponse),
    Exchange(19, "selectAttKeyID", SelectAttKeyIdRequest, SelectAttKeyIdResponse),
    Exchange(21, "getSupportedAttKeyIDNum", GetSupportedAttKeyIdNumRequest, GetSupportedAttKeyIdNumResponse),
    Exchange(22, "getSupportedAttKeyIDs", GetSupportedAttKeyIdsRequest, GetSupportedAttKeyIdsResponse),
)
_BY_REQUEST: Mapping[type, Exchange] = MappingProxyType({exchange.request: exchange for exchange in EXCHANGES})
_BY_NUMBER: Mapping[int, Exchange] = MappingProxyType({exchange.number: exchange for exchange in EXCHANGES})
_ORDER: Mapping[int, int] = MappingProxyType({exchange.number: at for at, exchange in enumerate(EXCHANGES)})
_WIRE_NAMES: Mapping[type, Mapping[str, str]] = MappingProxyType(
    {
        InitQuoteResponse: {"target_info": "targetInfo"},
        CheckUpdateStatusResponse: {"update_status": "status"},
    }
)


@dataclass(frozen=True, slots=True)
class IncompleteRequest:
    """A request that lacks fields it must have; it is answered with errorCode 1. `present` holds the others."""

    kind: type[Request]
    missing: tuple[str, ...]
    present: Mapping[str, Value]


def exchange_of(request: Request | IncompleteRequest) -> Exchange:
    """The row of the table that a request belongs to."""
    return _BY_REQUEST[request.kind if isinstance(request, IncompleteRequest) else type(request)]


def _echo_init(request: Request | IncompleteRequest) -> dict[str, Value]:
    return {"pub_key_id_size": _value(request, "buf_size") or 0}


def _echo_quote(request: Request | IncompleteRequest) -> dict[str, Value]:
    # An empty field counts as none.
    return {"qe_report_info": _value(request, "qe_report_info") or None}


_REFUSAL_FIELDS: Mapping[type[Request], Callable[[Request | IncompleteRequest], dict[str, Value]]] = MappingProxyType(
    {
        InitQuoteExRequest: _echo_init,
        GetQuoteExRequest: _echo_quote,
        GetQuoteSizeExRequest: lambda _: {"quote_size": 0},
        GetSupportedAttKeyIdNumRequest: lambda _: {"att_key_id_num": 0},
        GetWhiteListSizeRequest: lambda _: {"white_list_size": 0},
        SgxGetExtendedEpidGroupIdRequest: lambda _: {"x_group_id": 0},
        CheckUpdateStatusRequest: lambda _: {"update_status": 0},
    }
)


def refusal(request: Request | IncompleteRequest, status: AesmStatus) -> Response:
    """The response that reports an error: with the fields that Intel's service sends even then."""
    exchange = exchange_of(request)
    echo = _REFUSAL_FIELDS.get(exchange.request)
    further: dict[str, Any] = echo(request) if echo else {}
    return exchange.response(status, **further)


def parse_request(data: bytes) -> Request | IncompleteRequest:
    """Read a protobuf `Request`; no known request in it is a violation of the protocol."""
    found = _parse(pb.Request(), data).ListFields()
    if not found:
        raise RemoteProtocolError("the message holds no request that AESM knows")
    # One is the rule; of several, the order of dispatch decides, not the order on the wire.
    first = found[0] if len(found) == 1 else min(found, key=lambda present: _ORDER[present[0].number])
    descriptor, message = first
    return _request(_BY_NUMBER[descriptor.number], message)


def parse_response(data: bytes, exchange: Exchange) -> Response:
    """Read a protobuf `Response` that must answer this exchange; without an errorCode it is an error (1)."""
    envelope = _parse(pb.Response(), data)
    if not envelope.HasField(f"{exchange.field}Res"):
        raise RemoteProtocolError(f"the message is no answer to {exchange.name}")
    message = getattr(envelope, f"{exchange.field}Res")
    values: dict[str, Any] = _values(exchange.response, message)
    values["status"] = AesmStatus(message.errorCode)
    return exchange.response(**values)


def request_bytes(request: Request) -> bytes:
    """Write a request as protobuf."""
    envelope = pb.Request()
    return _bytes(envelope, getattr(envelope, f"{exchange_of(request).field}Req"), request)


def response_bytes(response: Response, exchange: Exchange) -> bytes:
    """Write a response as protobuf; errorCode is always on the wire."""
    envelope = pb.Response()
    return _bytes(envelope, getattr(envelope, f"{exchange.field}Res"), response)


def _request(exchange: Exchange, message: Message) -> Request | IncompleteRequest:
    values: dict[str, Any] = _values(exchange.request, message)
    required = _REQUIRED[exchange.request]
    if not required <= values.keys():
        missing = tuple(name for name, _ in _LAYOUTS[exchange.request] if name in required and name not in values)
        return IncompleteRequest(exchange.request, missing, MappingProxyType(values))
    return exchange.request(**values)


def _value(request: Request | IncompleteRequest, name: str) -> Value:
    found: Value = request.present.get(name) if isinstance(request, IncompleteRequest) else getattr(request, name)
    return found


def _parse(envelope: _Envelope, data: bytes) -> _Envelope:
    try:
        envelope.MergeFromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("the message is not protobuf") from error
    return envelope


def _bytes(envelope: Message, message: Message, value: Request | Response) -> bytes:
    message.SetInParent()
    try:
        for name, wire_name in _LAYOUTS[type(value)]:
            if (field := getattr(value, name)) is not None:
                setattr(message, wire_name, field)
        return envelope.SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise LocalProtocolError(f"{type(value).__name__} cannot be written: {error}") from error


def _values(kind: type, message: Message) -> dict[str, Value]:
    names = _NAMES[kind]
    return {names[descriptor.name]: value for descriptor, value in message.ListFields()}


def _layout(kind: type) -> tuple[tuple[str, str], ...]:
    renamed = _WIRE_NAMES.get(kind, {})
    if kind.__name__.endswith("Response"):
        renamed = {"status": "errorCode", **renamed}
    return tuple((item.name, renamed.get(item.name, item.name)) for item in fields(kind))


_LAYOUTS: Mapping[type, tuple[tuple[str, str], ...]] = MappingProxyType(
    {kind: _layout(kind) for exchange in EXCHANGES for kind in (exchange.request, exchange.response)}
)
_NAMES: Mapping[type, Mapping[str, str]] = MappingProxyType(
    {kind: {wire_name: name for name, wire_name in layout} for kind, layout in _LAYOUTS.items()}
)
_REQUIRED: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        exchange.request: frozenset(item.name for item in fields(exchange.request) if item.default is MISSING)
        for exchange in EXCHANGES
    }
)
