"""Which AESM request is answered by which response under which field number, and both as protobuf.

The table stands in the order in which Intel's service looks for a request, which matters when one message carries
several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from dataclasses import field as dataclass_field
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, EncodeError, Message

from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols import aesm_legacy_messages as legacy
from confcom.protocols import aesm_messages as m
from confcom.protocols._pb import aesm_pb2 as pb
from confcom.protocols.aesm_messages import Request, Response
from confcom.protocols.aesm_status import AesmStatus

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
    Exchange(3, "getLicToken", legacy.GetLaunchTokenRequest, legacy.GetLaunchTokenResponse),
    Exchange(1, "initQuote", legacy.InitQuoteRequest, legacy.InitQuoteResponse),
    Exchange(2, "getQuote", legacy.GetQuoteRequest, legacy.GetQuoteResponse),
    Exchange(4, "reportErr", legacy.ReportAttestationErrorRequest, legacy.ReportAttestationErrorResponse),
    Exchange(18, "checkUpdateStatus", legacy.CheckUpdateStatusRequest, legacy.CheckUpdateStatusResponse),
    Exchange(10, "getWhiteListSize", legacy.GetWhiteListSizeRequest, legacy.GetWhiteListSizeResponse),
    Exchange(11, "getWhiteList", legacy.GetWhiteListRequest, legacy.GetWhiteListResponse),
    Exchange(
        12,
        "sgxGetExtendedEpidGroupId",
        legacy.SgxGetExtendedEpidGroupIdRequest,
        legacy.SgxGetExtendedEpidGroupIdResponse,
    ),
    Exchange(
        13,
        "sgxSwitchExtendedEpidGroup",
        legacy.SgxSwitchExtendedEpidGroupRequest,
        legacy.SgxSwitchExtendedEpidGroupResponse,
    ),
    Exchange(14, "sgxRegister", legacy.SgxRegisterRequest, legacy.SgxRegisterResponse),
    Exchange(15, "initQuoteEx", m.InitQuoteExRequest, m.InitQuoteExResponse),
    Exchange(16, "getQuoteSizeEx", m.GetQuoteSizeExRequest, m.GetQuoteSizeExResponse),
    Exchange(17, "getQuoteEx", m.GetQuoteExRequest, m.GetQuoteExResponse),
    Exchange(19, "selectAttKeyID", m.SelectAttKeyIdRequest, m.SelectAttKeyIdResponse),
    Exchange(21, "getSupportedAttKeyIDNum", m.GetSupportedAttKeyIdNumRequest, m.GetSupportedAttKeyIdNumResponse),
    Exchange(22, "getSupportedAttKeyIDs", m.GetSupportedAttKeyIdsRequest, m.GetSupportedAttKeyIdsResponse),
)
_BY_REQUEST: Mapping[type, Exchange] = MappingProxyType({exchange.request: exchange for exchange in EXCHANGES})
_BY_NUMBER: Mapping[int, Exchange] = MappingProxyType({exchange.number: exchange for exchange in EXCHANGES})
_ORDER: Mapping[int, int] = MappingProxyType({exchange.number: at for at, exchange in enumerate(EXCHANGES)})
_WIRE_NAMES: Mapping[type, Mapping[str, str]] = MappingProxyType(
    {
        legacy.InitQuoteResponse: {"target_info": "targetInfo"},
        legacy.CheckUpdateStatusResponse: {"update_status": "status"},
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
        m.InitQuoteExRequest: _echo_init,
        m.GetQuoteExRequest: _echo_quote,
        m.GetQuoteSizeExRequest: lambda _: {"quote_size": 0},
        m.GetSupportedAttKeyIdNumRequest: lambda _: {"att_key_id_num": 0},
        legacy.GetWhiteListSizeRequest: lambda _: {"white_list_size": 0},
        legacy.SgxGetExtendedEpidGroupIdRequest: lambda _: {"x_group_id": 0},
        legacy.CheckUpdateStatusRequest: lambda _: {"update_status": 0},
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
