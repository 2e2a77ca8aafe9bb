"""The AESM socket without the socket: frames in, requests and responses out, for either side of it.

A frame is a little-endian uint32 that counts the bytes behind it, then one protobuf message. A connection carries
one request and one response; the server closes it after that. Bytes go in with `receive_data` in pieces of any size
(b"" at their end), values come out of `next_event`, and `send` turns a value into the bytes to write: in one piece,
because Intel's client reads an answer wrongly that arrives in many. The meaning of the requests is elsewhere.

What is not a request is for the shell to close in silence: Intel's client crashes on an answer that it did not expect.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Literal, TypeAlias

from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols.aesm_messages import (
    DcapRequest,
    IncompleteRequest,
    Request,
    Response,
    exchange_of,
    parse_request,
    parse_response,
    request_bytes,
    response_bytes,
)

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


class _State(Enum):
    IDLE = auto()
    RECEIVING = auto()
    ANSWERING = auto()
    DONE = auto()
    BROKEN = auto()


class _Connection:
    """One side of a connection; collects one frame, and never holds more than the limit and one piece beyond it."""

    __slots__ = ("_buffer", "_ended", "_limit", "_state")

    def __init__(self, limit: int, state: _State) -> None:
        self._limit = limit
        self._state = state
        self._buffer: bytes | bytearray = b""  # most frames arrive whole and are never copied together
        self._ended = False

    def receive_data(self, data: bytes) -> None:
        """Take bytes that arrived, or b"" at their end. What comes after the frame is dropped."""
        if self._state is not _State.RECEIVING:
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
        self._state = _State.BROKEN
        size = len(self._buffer)
        if size >= LENGTH_SIZE:
            length = int.from_bytes(self._buffer[:LENGTH_SIZE], "little")
            if length > self._limit:
                raise RemoteProtocolError(f"a message of {length} bytes is announced, the limit is {self._limit}")
            if size >= LENGTH_SIZE + length:
                return bytes(self._buffer[LENGTH_SIZE : LENGTH_SIZE + length])
        if not self._ended:
            self._state = _State.RECEIVING
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
        super().__init__(max_request, _State.RECEIVING)

    def next_event(self) -> Request | IncompleteRequest | NeedData | Closed:
        """The request, once it is whole. After it, this side speaks: asking again is a mistake."""
        if self._state is not _State.RECEIVING:
            raise LocalProtocolError("one connection carries one request")
        frame = self._next_frame()
        if isinstance(frame, Signal):
            return frame
        request = parse_request(frame)
        self._exchange = exchange_of(request)
        self._state = _State.ANSWERING
        return request

    def send(self, response: Response) -> bytes:
        """The frame of the response; it must belong to the request."""
        if self._state is not _State.ANSWERING:
            raise LocalProtocolError("there is no request to answer")
        exchange = self._exchange
        if type(response) is not exchange.response:
            raise LocalProtocolError(f"{type(response).__name__} does not answer {exchange.name}")
        frame = _frame(response_bytes(response, exchange))
        self._state = _State.DONE
        return frame


class ClientConnection(_Connection):
    """The client's side of one connection: one request out, its response in.

    `next_event` raises `RemoteProtocolError` for an answer that is too long, cut off, missing or of another kind.
    """

    __slots__ = ("_exchange",)

    def __init__(self, max_response: int = MAX_RESPONSE) -> None:
        super().__init__(max_response, _State.IDLE)

    def send(self, request: DcapRequest) -> bytes:
        """The frame of the request."""
        if self._state is not _State.IDLE:
            raise LocalProtocolError("one connection carries one request")
        frame = _frame(request_bytes(request))
        self._exchange = exchange_of(request)
        self._state = _State.RECEIVING
        return frame

    def next_event(self) -> Response | NeedData:
        """The response, once it is whole."""
        if self._state is not _State.RECEIVING:
            raise LocalProtocolError("no response is due")
        frame = self._next_frame()
        if frame is NEED_DATA:
            return frame
        if isinstance(frame, Signal):
            raise RemoteProtocolError(f"the service closed the connection without an answer to {self._exchange.name}")
        response = parse_response(frame, self._exchange)
        self._state = _State.DONE
        return response


def _frame(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH_SIZE, "little") + message


# How a container reaches the quote helper of its node: the names on which applications, pods and nodes agree.


FOLDER = "/var/run/aesmd"
"""Of the helper's socket, on the node and in containers. The folder, because each helper makes a socket of its own."""
SOCKET = "aesm.socket"
"""Name of the socket there."""
VARIABLE = "SGX_AESM_ADDR"
"""Environment variable whose presence makes Intel's library ask AESM for quotes."""
