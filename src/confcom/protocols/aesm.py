"""The AESM socket without the socket: requests and responses as values and as protobuf, and their frames.

A frame is a little-endian uint32 that counts the bytes behind it, then one protobuf message. A connection carries
one request and one response; the server closes it after that. Bytes go in with `receive_data` in pieces of any size
(b"" at their end), values come out of `next_event`, and `send` turns a value into the bytes to write: in one piece,
because Intel's client reads an answer wrongly that arrives in many. The meaning of the requests is elsewhere.

What is not a request is for the shell to close in silence: Intel's client crashes on an answer that it did not expect.

The exchanges of DCAP (ECDSA quotes) have a class each; those of EPID and launch control, which no machine of today
needs and some clients still send, are read and written by their protobuf descriptors. Fields carry the names of
`proto/aesm.proto`. None means that the field is not on the wire, which is not the same as zero or empty there.
`timeout` is in a unit that differs from client to client and is ignored. Sizes are in bytes. `status` of a response is
its errorCode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from google.protobuf.message import DecodeError, EncodeError, Message

from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols._pb import aesm_pb2 as pb
from confcom.protocols.aesm_status import AesmStatus

# How a container reaches the quote helper of its node: the names on which applications, pods and nodes agree.


FOLDER = "/var/run/aesmd"
"""Of the helper's socket, on the node and in containers. The folder, because each helper makes a socket of its own."""
SOCKET = "aesm.socket"
"""Name of the socket there."""
VARIABLE = "SGX_AESM_ADDR"
"""Environment variable. While it is set, Intel's library asks AESM for quotes."""

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

    `number` is the field of both in their envelopes, `field` the common part of the two field names there, `name` the
    one for logs and messages, such as `GetQuoteEx`.
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
        self.request_field, self.response_field = f"{field}Req", f"{field}Res"
        self.name = name
        self.request = request
        self.response = response
        asked = pb.Request.DESCRIPTOR.fields_by_number[number].message_type
        assert asked is not None  # noqa: S101 - a constant of the schema
        self.required = tuple(item.name for item in asked.fields if item.is_required)


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

_OF_ANY_EXCHANGE = (LegacyRequest, IncompleteRequest, LegacyResponse)
_Envelope = TypeVar("_Envelope", bound=Message)
_BY_REQUEST: Mapping[type, Exchange] = MappingProxyType({exchange.request: exchange for exchange in EXCHANGES})
_BY_NUMBER: Mapping[int, Exchange] = MappingProxyType({exchange.number: exchange for exchange in EXCHANGES})
_ORDER: Mapping[int, int] = MappingProxyType({exchange.number: at for at, exchange in enumerate(EXCHANGES)})


def exchange_of(request: Request | IncompleteRequest) -> Exchange:
    """The exchange that a request belongs to."""
    if isinstance(request, _OF_ANY_EXCHANGE):
        return request.exchange
    return _BY_REQUEST[type(request)]


_REFUSAL_FIELDS: Mapping[str, Callable[[Request | IncompleteRequest], dict[str, Value]]] = MappingProxyType(
    {
        "InitQuoteEx": lambda request: {"pub_key_id_size": values_of(request).get("buf_size") or 0},
        # An empty field counts as none.
        "GetQuoteEx": lambda request: {"qe_report_info": values_of(request).get("qe_report_info") or None},
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
    found = _parse(pb.Request, data).ListFields()
    if not found:
        raise RemoteProtocolError("the message holds no request that AESM knows")
    # One is the rule; of several, the order of dispatch decides, not the order on the wire.
    first = found[0] if len(found) == 1 else min(found, key=lambda present: _ORDER[present[0].number])
    exchange = _BY_NUMBER[first[0].number]
    values: dict[str, Any] = {item.name: value for item, value in first[1].ListFields()}
    missing = [name for name in exchange.required if name not in values]
    if missing:
        return IncompleteRequest(exchange, tuple(missing), values)
    return LegacyRequest(exchange, values) if exchange.request is LegacyRequest else exchange.request(**values)


def parse_response(data: bytes, exchange: Exchange) -> Response:
    """Read a protobuf `Response` that must answer this exchange; without an errorCode it is an error (1)."""
    envelope = _parse(pb.Response, data)
    if not envelope.HasField(exchange.response_field):
        raise RemoteProtocolError(f"the message is no answer to {exchange.name}")
    message = getattr(envelope, exchange.response_field)
    values: dict[str, Any] = {item.name: value for item, value in message.ListFields()}
    status = AesmStatus(message.errorCode)
    values.pop("errorCode", None)
    if exchange.response is LegacyResponse:
        return LegacyResponse(status, values)
    return exchange.response(status, **values)


def request_bytes(request: DcapRequest) -> bytes:
    """Write a request as protobuf."""
    return _write(pb.Request, exchange_of(request).request_field, values_of(request))


def response_bytes(response: Response, exchange: Exchange) -> bytes:
    """Write a response as protobuf; errorCode is always on the wire."""
    return _write(pb.Response, exchange.response_field, {"errorCode": response.status, **values_of(response)})


def values_of(message: Request | Response | IncompleteRequest) -> Mapping[str, Value]:
    """The fields of a message except its status; None or left out: not on the wire."""
    if isinstance(message, _OF_ANY_EXCHANGE):
        return message.values
    fields = msgspec.structs.asdict(message)
    fields.pop("status", None)
    return fields


def _parse(envelope: type[_Envelope], data: bytes) -> _Envelope:
    try:
        return envelope.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("the message is not protobuf") from error


def _write(envelope: type[Message], field: str, values: Mapping[str, Value]) -> bytes:
    try:
        return envelope(**{field: values}).SerializeToString()  # None is left out
    except (TypeError, ValueError, EncodeError) as error:
        raise LocalProtocolError(f"{field} cannot be written: {error}") from error


MAX_REQUEST = 64 * 1024
"""Longest request in bytes; the largest that a modern client sends is 2.6 KB."""
MAX_RESPONSE = 128 * 1024
"""Longest response in bytes; a quote is at most 13 KB, padding at most 64 KiB."""

LENGTH_SIZE = 4
"""Bytes of the length before a message."""


class Signal(Enum):
    """What `next_event` returns when there is no message."""

    NEED_DATA = auto()
    CLOSED = auto()


NEED_DATA: Final = Signal.NEED_DATA
"""The next message is not complete yet."""
CLOSED: Final = Signal.CLOSED
"""The peer closed without having sent anything."""

NeedData: TypeAlias = Literal[Signal.NEED_DATA]
Closed: TypeAlias = Literal[Signal.CLOSED]


_IDLE, _RECEIVING, _ANSWERING, _DONE, _BROKEN = range(5)
"""States of one side. No `Enum`: looking its members up takes longer than what is done in between."""


class _Connection:
    """One side of a connection; collects one frame, and never holds more than the limit and one piece beyond it."""

    __slots__ = ("_buffer", "_ended", "_limit", "_state")

    def __init__(self, limit: int, state: int) -> None:
        self._limit = limit
        self._state = state
        self._buffer: bytes | bytearray = b""  # most frames arrive whole and are never copied together
        self._ended = False

    def receive_data(self, data: bytes) -> None:
        """Take bytes that arrived, or b"" at their end. What comes after the frame is dropped."""
        if self._state != _RECEIVING:
            return
        if not data:
            self._ended = True
        elif self._ended:
            raise LocalProtocolError("data after the end of the stream")
        elif not self._buffer:
            self._buffer = data
        elif len(self._buffer) < LENGTH_SIZE + self._limit:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data

    def _next_frame(self) -> bytes | Signal:
        """The message of the frame; not to be called again once it gave one or raised."""
        self._state = _BROKEN
        size = len(self._buffer)
        if size >= LENGTH_SIZE:
            length = int.from_bytes(self._buffer[:LENGTH_SIZE], "little")
            if length > self._limit:
                raise RemoteProtocolError(f"a message of {length} bytes is announced, the limit is {self._limit}")
            if size >= LENGTH_SIZE + length:
                return bytes(self._buffer[LENGTH_SIZE : LENGTH_SIZE + length])
        if not self._ended:
            self._state = _RECEIVING
            return NEED_DATA
        if not size:
            return CLOSED
        raise RemoteProtocolError(f"the stream ended within a message, after {size} bytes")


class ServerConnection(_Connection):
    """The service's side of one connection: one request in, its response out.

    `next_event` raises `RemoteProtocolError` for a message that is too long, cut off, not protobuf or no request;
    the connection is then to be closed without an answer.
    """

    __slots__ = ("_exchange",)

    def __init__(self, max_request: int = MAX_REQUEST) -> None:
        super().__init__(max_request, _RECEIVING)

    def next_event(self) -> Request | IncompleteRequest | NeedData | Closed:
        """The request, once it is whole. After it, this side speaks: asking again is a mistake."""
        if self._state != _RECEIVING:
            raise LocalProtocolError("one connection carries one request")
        frame = self._next_frame()
        if isinstance(frame, Signal):
            return frame
        request = parse_request(frame)
        self._exchange = exchange_of(request)
        self._state = _ANSWERING
        return request

    def send(self, response: Response) -> bytes:
        """The frame of the response; it must belong to the request."""
        if self._state != _ANSWERING:
            raise LocalProtocolError("there is no request to answer")
        exchange = self._exchange
        if type(response) is not exchange.response:
            raise LocalProtocolError(f"{type(response).__name__} does not answer {exchange.name}")
        frame = _frame(response_bytes(response, exchange))
        self._state = _DONE
        return frame


class ClientConnection(_Connection):
    """The client's side of one connection: one request out, its response in.

    `next_event` raises `RemoteProtocolError` for an answer that is too long, cut off, missing or of another kind.
    """

    __slots__ = ("_exchange",)

    def __init__(self, max_response: int = MAX_RESPONSE) -> None:
        super().__init__(max_response, _IDLE)

    def send(self, request: DcapRequest) -> bytes:
        """The frame of the request."""
        if self._state != _IDLE:
            raise LocalProtocolError("one connection carries one request")
        frame = _frame(request_bytes(request))
        self._exchange = exchange_of(request)
        self._state = _RECEIVING
        return frame

    def next_event(self) -> Response | NeedData:
        """The response, once it is whole."""
        if self._state != _RECEIVING:
            raise LocalProtocolError("no response is due")
        frame = self._next_frame()
        if frame is NEED_DATA:
            return frame
        if isinstance(frame, Signal):
            raise RemoteProtocolError(f"the service closed the connection without an answer to {self._exchange.name}")
        response = parse_response(frame, self._exchange)
        self._state = _DONE
        return response


def _frame(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH_SIZE, "little") + message
