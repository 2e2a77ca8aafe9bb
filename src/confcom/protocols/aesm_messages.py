"""Requests and responses of the AESM socket: as values, and as protobuf.

The exchanges of DCAP (ECDSA quotes) have a class each; those of EPID and launch control, which no machine of today
needs and some clients still send, are read and written by their protobuf descriptors. Fields carry the names of
`proto/aesm.proto`. None means that the field is not on the wire, which is not the same as zero or empty there.
`timeout` is in a unit that differs from client to client and is ignored. Sizes are in bytes. `status` of a response is
its errorCode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import msgspec
from google.protobuf.message import DecodeError, EncodeError, Message

from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols._pb import aesm_pb2 as pb
from confcom.protocols.aesm_status import AesmStatus

Value: TypeAlias = bytes | int | None


class InitQuoteExRequest(msgspec.Struct, frozen=True):
    """15: the QE's target info (512) and, when `b_pub_key_id`, the id of its attestation key into `buf_size` bytes."""

    b_pub_key_id: bool
    att_key_id: bytes | None = None
    buf_size: int | None = None
    timeout: int | None = None


class InitQuoteExResponse(msgspec.Struct, frozen=True):
    """15. Intel's client copies a `pub_key_id` that it did not ask for to a null pointer."""

    status: AesmStatus
    target_info: bytes | None = None
    pub_key_id_size: int | None = None
    pub_key_id: bytes | None = None


class GetQuoteSizeExRequest(msgspec.Struct, frozen=True):
    """16: the exact size of the next quote."""

    att_key_id: bytes | None = None
    timeout: int | None = None


class GetQuoteSizeExResponse(msgspec.Struct, frozen=True):
    """16."""

    status: AesmStatus
    quote_size: int | None = None


class GetQuoteExRequest(msgspec.Struct, frozen=True):
    """17: a quote over `report` (432), at most `buf_size` long; `qe_report_info` (960) asks for a QE report too."""

    report: bytes
    buf_size: int
    att_key_id: bytes | None = None
    qe_report_info: bytes | None = None
    timeout: int | None = None


class GetQuoteExResponse(msgspec.Struct, frozen=True):
    """17."""

    status: AesmStatus
    quote: bytes | None = None
    qe_report_info: bytes | None = None


class SelectAttKeyIdRequest(msgspec.Struct, frozen=True):
    """19: which of the caller's key ids the service can use."""

    att_key_id_list: bytes | None = None
    timeout: int | None = None


class SelectAttKeyIdResponse(msgspec.Struct, frozen=True):
    """19: one id (256), as the caller wrote it."""

    status: AesmStatus
    selected_att_key_id: bytes | None = None


class GetSupportedAttKeyIdNumRequest(msgspec.Struct, frozen=True):
    """21: how many key ids there are."""

    timeout: int | None = None


class GetSupportedAttKeyIdNumResponse(msgspec.Struct, frozen=True):
    """21."""

    status: AesmStatus
    att_key_id_num: int | None = None


class GetSupportedAttKeyIdsRequest(msgspec.Struct, frozen=True):
    """22: the key ids, into exactly `buf_size` bytes."""

    buf_size: int
    timeout: int | None = None


class GetSupportedAttKeyIdsResponse(msgspec.Struct, frozen=True):
    """22."""

    status: AesmStatus
    att_key_ids: bytes | None = None


class LegacyRequest(msgspec.Struct, frozen=True):
    """A request of EPID or launch control: the fields that are on the wire, all required ones among them."""

    exchange: Exchange
    values: Mapping[str, Value]


class LegacyResponse(msgspec.Struct, frozen=True):
    """A response of EPID or launch control: its errorCode, and the other fields that it has."""

    status: AesmStatus
    values: Mapping[str, Value]


class IncompleteRequest(msgspec.Struct, frozen=True):
    """A request that lacks required fields; it is answered with errorCode 1. `values` holds the fields it has."""

    exchange: Exchange
    missing: tuple[str, ...]
    values: Mapping[str, Value]


DcapRequest: TypeAlias = (
    InitQuoteExRequest | GetQuoteSizeExRequest | GetQuoteExRequest | SelectAttKeyIdRequest
    | GetSupportedAttKeyIdNumRequest | GetSupportedAttKeyIdsRequest
)  # fmt: skip
DcapResponse: TypeAlias = (
    InitQuoteExResponse | GetQuoteSizeExResponse | GetQuoteExResponse | SelectAttKeyIdResponse
    | GetSupportedAttKeyIdNumResponse | GetSupportedAttKeyIdsResponse
)  # fmt: skip
Request: TypeAlias = DcapRequest | LegacyRequest
Response: TypeAlias = DcapResponse | LegacyResponse


class Exchange:
    """One kind of request and its response.

    `number` is the field of both in their envelopes, `field` the common part of the two field names, `name` the one for
    logs and messages, such as `GetQuoteEx`.
    """

    def __init__(
        self,
        number: int,
        field: str,
        name: str,
        request: type[Request] = LegacyRequest,
        response: type[Response] = LegacyResponse,
    ) -> None:
        self.number = number
        self.field = field
        self.name = name
        self.request = request
        self.response = response
        asked = pb.Request.DESCRIPTOR.fields_by_number[number].message_type
        assert asked is not None  # noqa: S101 - a constant of the schema
        self.required = tuple(item.name for item in asked.fields if item.is_required)

    def __repr__(self) -> str:
        return f"<Exchange {self.number} {self.name}>"


EXCHANGES = (
    Exchange(3, "getLicToken", "GetLaunchToken"),
    Exchange(1, "initQuote", "InitQuote"),
    Exchange(2, "getQuote", "GetQuote"),
    Exchange(4, "reportErr", "ReportAttestationError"),
    Exchange(18, "checkUpdateStatus", "CheckUpdateStatus"),
    Exchange(10, "getWhiteListSize", "GetWhiteListSize"),
    Exchange(11, "getWhiteList", "GetWhiteList"),
    Exchange(12, "sgxGetExtendedEpidGroupId", "SgxGetExtendedEpidGroupId"),
    Exchange(13, "sgxSwitchExtendedEpidGroup", "SgxSwitchExtendedEpidGroup"),
    Exchange(14, "sgxRegister", "SgxRegister"),
    Exchange(15, "initQuoteEx", "InitQuoteEx", InitQuoteExRequest, InitQuoteExResponse),
    Exchange(16, "getQuoteSizeEx", "GetQuoteSizeEx", GetQuoteSizeExRequest, GetQuoteSizeExResponse),
    Exchange(17, "getQuoteEx", "GetQuoteEx", GetQuoteExRequest, GetQuoteExResponse),
    Exchange(19, "selectAttKeyID", "SelectAttKeyId", SelectAttKeyIdRequest, SelectAttKeyIdResponse),
    Exchange(
        21, "getSupportedAttKeyIDNum", "GetSupportedAttKeyIdNum",
        GetSupportedAttKeyIdNumRequest, GetSupportedAttKeyIdNumResponse,
    ),
    Exchange(
        22, "getSupportedAttKeyIDs", "GetSupportedAttKeyIds",
        GetSupportedAttKeyIdsRequest, GetSupportedAttKeyIdsResponse,
    ),
)  # fmt: skip
"""In the order in which Intel's service looks for a request, which matters when one message carries several."""

_OF_ANY_EXCHANGE = (LegacyRequest, IncompleteRequest)
_Envelope = TypeVar("_Envelope", bound=Message)
_BY_REQUEST: Mapping[type, Exchange] = MappingProxyType({exchange.request: exchange for exchange in EXCHANGES})
_BY_NUMBER: Mapping[int, Exchange] = MappingProxyType({exchange.number: exchange for exchange in EXCHANGES})
_ORDER: Mapping[int, int] = MappingProxyType({exchange.number: at for at, exchange in enumerate(EXCHANGES)})


def exchange_of(request: Request | IncompleteRequest) -> Exchange:
    """The exchange that a request belongs to."""
    if isinstance(request, _OF_ANY_EXCHANGE):
        return request.exchange
    return _BY_REQUEST[type(request)]


def _echo_init(request: Request | IncompleteRequest) -> dict[str, Value]:
    return {"pub_key_id_size": _value(request, "buf_size") or 0}


def _echo_quote(request: Request | IncompleteRequest) -> dict[str, Value]:
    # An empty field counts as none.
    return {"qe_report_info": _value(request, "qe_report_info") or None}


_REFUSAL_FIELDS: Mapping[str, Callable[[Request | IncompleteRequest], dict[str, Value]]] = MappingProxyType(
    {
        "InitQuoteEx": _echo_init,
        "GetQuoteEx": _echo_quote,
        "GetQuoteSizeEx": lambda _: {"quote_size": 0},
        "GetSupportedAttKeyIdNum": lambda _: {"att_key_id_num": 0},
        "GetWhiteListSize": lambda _: {"white_list_size": 0},
        "SgxGetExtendedEpidGroupId": lambda _: {"x_group_id": 0},
        "CheckUpdateStatus": lambda _: {"status": 0},
    }
)


def refusal(request: Request | IncompleteRequest, status: AesmStatus) -> Response:
    """The response that reports an error: with the fields that Intel's service sends even then."""
    exchange = exchange_of(request)
    echo = _REFUSAL_FIELDS.get(exchange.name)
    further: dict[str, Any] = echo(request) if echo else {}
    if exchange.response is LegacyResponse:
        return LegacyResponse(status, further)
    return exchange.response(status, **further)


def parse_request(data: bytes) -> Request | IncompleteRequest:
    """Read a protobuf `Request`; no known request in it is a violation of the protocol."""
    found = _parse(pb.Request(), data).ListFields()
    if not found:
        raise RemoteProtocolError("the message holds no request that AESM knows")
    # One is the rule; of several, the order of dispatch decides, not the order on the wire.
    first = found[0] if len(found) == 1 else min(found, key=lambda present: _ORDER[present[0].number])
    exchange = _BY_NUMBER[first[0].number]
    values: dict[str, Any] = {item.name: value for item, value in first[1].ListFields()}
    missing = tuple(name for name in exchange.required if name not in values)
    if missing:
        return IncompleteRequest(exchange, missing, values)
    return LegacyRequest(exchange, values) if exchange.request is LegacyRequest else exchange.request(**values)


def parse_response(data: bytes, exchange: Exchange) -> Response:
    """Read a protobuf `Response` that must answer this exchange; without an errorCode it is an error (1)."""
    envelope = _parse(pb.Response(), data)
    if not envelope.HasField(f"{exchange.field}Res"):
        raise RemoteProtocolError(f"the message is no answer to {exchange.name}")
    message = getattr(envelope, f"{exchange.field}Res")
    values: dict[str, Any] = {item.name: value for item, value in message.ListFields()}
    status = AesmStatus(message.errorCode)
    values.pop("errorCode", None)
    if exchange.response is LegacyResponse:
        return LegacyResponse(status, values)
    return exchange.response(status, **values)


def request_bytes(request: DcapRequest) -> bytes:
    """Write a request as protobuf."""
    envelope = pb.Request()
    message = getattr(envelope, f"{exchange_of(request).field}Req")
    return _write(envelope, message, values_of(request))


def response_bytes(response: Response, exchange: Exchange) -> bytes:
    """Write a response as protobuf; errorCode is always on the wire."""
    envelope = pb.Response()
    message = getattr(envelope, f"{exchange.field}Res")
    message.errorCode = response.status
    return _write(envelope, message, values_of(response))


def values_of(message: Request | Response | IncompleteRequest) -> Mapping[str, Value]:
    """The fields of a message except its status; None or left out: not on the wire."""
    if isinstance(message, (*_OF_ANY_EXCHANGE, LegacyResponse)):
        return message.values
    return {name: getattr(message, name) for name in message.__struct_fields__ if name != "status"}


def _value(request: Request | IncompleteRequest, name: str) -> Value:
    return values_of(request).get(name)


def _parse(envelope: _Envelope, data: bytes) -> _Envelope:
    try:
        envelope.MergeFromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("the message is not protobuf") from error
    return envelope


def _write(envelope: Message, message: Message, values: Mapping[str, Value]) -> bytes:
    message.SetInParent()
    try:
        for name, value in values.items():
            if value is not None:
                setattr(message, name, value)
        return envelope.SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be written: {error}") from error
