"""What a process with Intel's libraries and its parent say to each other: one message per datagram, MessagePack.

The channel is a pair of SOCK_SEQPACKET sockets, so a message is whole or not there. The worker says `Ready` or `Failed`
when its libraries are loaded; then every request gets one answer. Native code runs in the worker, so its messages are
read as a stranger's: bounded, and checked for their form.
"""

from __future__ import annotations

import msgspec

from confcom import errors
from confcom.errors import ConfcomError, FormatError, NativeError, PlatformBusy, PlatformError

MAX_MESSAGE = 128 * 1024
"""Bytes. The longest is a quote of 64 KiB with a QE report info."""
MAX_TEXT = 2048
"""Characters of a message or an advice."""


class ListKeyIds(msgspec.Struct, frozen=True, tag="key-ids"):
    """`Platform.key_ids`."""


class Initialize(msgspec.Struct, frozen=True, tag="init-quote"):
    """`Platform.init_quote`; records travel as their bytes."""

    key_id: bytes | None


class AskSize(msgspec.Struct, frozen=True, tag="quote-size"):
    """`Platform.quote_size`."""

    key_id: bytes | None


class MakeQuote(msgspec.Struct, frozen=True, tag="quote"):
    """`Platform.quote`."""

    report: bytes
    key_id: bytes | None
    qe_report_info: bytes | None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The libraries are loaded."""


class KeyIds(msgspec.Struct, frozen=True, tag="key-ids"):
    """Answer: the ids, 256 bytes each."""

    key_ids: tuple[bytes, ...]


class Initialized(msgspec.Struct, frozen=True, tag="initialized"):
    """Answer: target info (512 bytes) and key id (32 bytes)."""

    target_info: bytes
    pub_key_id: bytes


class Size(msgspec.Struct, frozen=True, tag="size"):
    """Answer: bytes of the next quote."""

    size: int


class Quoted(msgspec.Struct, frozen=True, tag="quoted"):
    """Answer: a quote and, if it was asked for, the QE report info (960 bytes)."""

    quote: bytes
    qe_report_info: bytes | None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Answer: a `PlatformError`, by its code."""

    code: str
    message: str
    advice: str
    retryable: bool
    native_code: int | None

    @classmethod
    def of(cls, error: ConfcomError) -> Failed:
        """The error as a message."""
        retryable = isinstance(error, PlatformError) and error.retryable
        native_code = error.native_code if isinstance(error, PlatformError) else None
        return cls(error.code, str(error)[:MAX_TEXT], error.advice()[:MAX_TEXT], retryable, native_code)

    def error(self) -> PlatformError:
        """The message as an error; a code of no `PlatformError` becomes a `NativeError`."""
        kind = _KINDS.get(self.code, NativeError)
        if kind is PlatformBusy:
            return PlatformBusy(self.message, native_code=self.native_code, advice=self.advice)
        return kind(self.message, retryable=self.retryable, native_code=self.native_code, advice=self.advice)


WorkerRequest = ListKeyIds | Initialize | AskSize | MakeQuote
WorkerAnswer = Ready | KeyIds | Initialized | Size | Quoted | Failed

_KINDS: dict[str, type[PlatformError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PlatformError)
}
_REQUESTS: msgspec.msgpack.Decoder[WorkerRequest] = msgspec.msgpack.Decoder(WorkerRequest)
_ANSWERS: msgspec.msgpack.Decoder[WorkerAnswer] = msgspec.msgpack.Decoder(WorkerAnswer)
_ENCODER = msgspec.msgpack.Encoder()


def pack(message: WorkerRequest | WorkerAnswer) -> bytes:
    """A message as a datagram."""
    return _ENCODER.encode(message)


def parse_request(data: bytes) -> WorkerRequest:
    """Read a request."""
    try:
        return _REQUESTS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(str(error), structure="WorkerRequest", field="") from error


def parse_answer(data: bytes) -> WorkerAnswer:
    """Read an answer."""
    try:
        return _ANSWERS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(str(error), structure="WorkerAnswer", field="") from error
