"""What the kubelet's gRPC services have in common: values that are messages, and calls as a table knows them.

A value has `parse(bytes)` and `bytes(x)`, like every format here. Bytes that are not the message are a `FormatError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from confcom.errors import FormatError
from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb

_Pb = TypeVar("_Pb", bound=Message)


class Value(Protocol):
    """A message of this API."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""

    def __bytes__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Method:
    """One call: `path` as on the wire, what goes in and out; `streams` when answers keep coming."""

    path: str
    request: type[Any]
    response: type[Any]
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Empty:
    """No content."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it; fields that we do not know are skipped."""
        read_message(pb.Empty(), data)
        return cls()

    def __bytes__(self) -> bytes:
        return b""


def read_message(message: _Pb, data: bytes) -> _Pb:
    """Fill a protobuf message; bytes that are none are a `FormatError`."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(str(error), structure=type(message).__name__, field="") from error
    return message
