"""gRPC on Unix sockets for the kubelet's APIs; the only module that knows the gRPC library.

Messages and calls are those of `confcom.protocols.kubelet`. Every failure of a call of ours is a `ConfcomError`; every
`ConfcomError` of a handler becomes a status by the table here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

import structlog
from google.protobuf.message import Message
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.exceptions import ProtocolError as GrpcProtocolError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream

from confcom.errors import (
    ConfcomError,
    ConfigError,
    FormatError,
    PlatformBusy,
    PlatformError,
    PlatformUnavailable,
    PolicyError,
    ProtocolError,
    RemoteProtocolError,
)
from confcom.protocols.kubelet import LIST, Empty, Holder, Method, holders, parse
from confcom.services.runtime.listener import clear_path, inode, settle, stop_accepting

if TYPE_CHECKING:
    from confcom.services.device_plugin.plugin import DevicePluginConfig

SOCKET_MODE = 0o600
"""Only root may connect, as the kubelet does."""
MAX_PATH = 107
"""Bytes of a socket's path: `sun_path` without its NUL."""
_CLOSING = 1.0
"""Seconds for calls under way to end."""
_CLOSED = "the plugin closes its socket"

Handlers: TypeAlias = Mapping[Method, Callable[[Any], Any]]
"""Each takes the request; the answer is awaited, or iterated where the method streams."""

STATUSES: tuple[tuple[type[ConfcomError], Status], ...] = (
    (FormatError, Status.INVALID_ARGUMENT),
    (ProtocolError, Status.INVALID_ARGUMENT),
    (PolicyError, Status.PERMISSION_DENIED),
    (PlatformError, Status.UNAVAILABLE),
    (ConfigError, Status.FAILED_PRECONDITION),
    (ConfcomError, Status.INTERNAL),
)
"""Errors to gRPC statuses; the first that fits counts."""


class GrpcSocket:
    """A server bound at `path`. A socket that was there is replaced; `close` removes the path only if it is ours."""

    def __init__(self, path: Path, handlers: Handlers) -> None:
        self.path = path
        self._socket = _bind(path)
        self._inode = inode(path)
        self._server = _Server([_Service(handlers)], _Codec())

    def owns_path(self) -> bool:
        """Whether the path still leads here."""
        return self._inode == inode(self.path)

    def path_exists(self) -> bool:
        """Whether the path leads anywhere."""
        return inode(self.path) is not None

    async def start(self) -> None:
        await self._server.start(path=None, sock=self._socket)

    async def close(self) -> None:
        with suppress(OSError):
            if self.owns_path():
                self.path.unlink()
        await stop_accepting([self._socket])
        self._server.close()
        self._server.close_connections()
        self._socket.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self._server.wait_closed()
        await settle()


async def call(path: Path, method: Method, request: Message, *, timeout: float) -> Any:  # noqa: ANN401 - the method says
    """One call to the server at a socket."""
    channel = Channel(path=str(path), codec=_Codec())
    ask = UnaryUnaryMethod(channel, method.path, method.request, method.response)
    try:
        # In a task of its own: the library cancels the task of a call that breaks off, and does not take that back.
        # Before Python 3.11.3 the next `asyncio.timeout` of that task would then raise CancelledError.
        async with asyncio.timeout(timeout):
            return await asyncio.create_task(ask(request))
    except GRPCError as error:
        message = f"{path} answered {error.status.name}: {error.message or 'without a reason'}"
        raise RemoteProtocolError(message) from error
    except TimeoutError as error:
        raise PlatformBusy(f"{path} did not answer within {timeout:g} s") from error
    except (GrpcProtocolError, StreamTerminatedError, AssertionError) as error:
        raise RemoteProtocolError(f"{path} broke the call off: {error}") from error
    except AttributeError as error:
        # The library's own, where the connection ends between two of its steps.
        if error.name != "_transport":
            raise
        raise RemoteProtocolError(f"{path} broke the call off") from error
    except OSError as error:
        raise PlatformUnavailable(f"cannot reach {path}: {error.strerror or error}", retryable=True) from error
    finally:
        channel.close()


async def held_devices(config: DevicePluginConfig, *resources: str) -> list[Mapping[Holder, list[str]]]:
    """Which ids of each resource the containers of this node hold, by the kubelet's podresources API."""
    listed = await call(Path(config.pod_resources_socket), LIST, Empty(), timeout=config.register_timeout)
    return [holders(listed, resource) for resource in resources]


def status_of(error: ConfcomError) -> Status:
    """The first entry of `STATUSES` that fits."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


class _Server(Server):
    """A server that also ends its connections: the library leaves that to the peer, which may run for months."""

    def __init__(self, handlers: Collection[_Service], codec: CodecBase) -> None:
        super().__init__(handlers, codec=codec)
        self._protocols: WeakSet[H2Protocol] = WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    def close_connections(self) -> None:
        for protocol in list(self._protocols):
            if hasattr(protocol, "processor"):
                protocol.processor.close(_CLOSED)


class _Codec(CodecBase):
    """The library's own, but bytes that are no message are a `FormatError`."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:  # noqa: ANN401 - as the library declares it
        del message_type
        return bytes(message.SerializeToString())

    def decode(self, data: bytes, message_type: Any) -> Any:  # noqa: ANN401 - as the library declares it
        return parse(message_type, data)


class _Service:
    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def __mapping__(self) -> dict[str, Handler]:
        return {
            method.path: Handler(
                _answer_many(answer) if method.streams else _answer_one(answer),
                Cardinality.UNARY_STREAM if method.streams else Cardinality.UNARY_UNARY,
                method.request,
                method.response,
            )
            for method, answer in self._handlers.items()
        }


def _answer_one(answer: Callable[[Any], Any]) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def handle(stream: Stream[Any, Any]) -> None:
        with _Translated():
            await stream.send_message(await answer(await _receive(stream)))

    return handle


def _answer_many(answer: Callable[[Any], Any]) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def handle(stream: Stream[Any, Any]) -> None:
        with _Translated():
            async for message in answer(await _receive(stream)):
                await stream.send_message(message)

    return handle


async def _receive(stream: Stream[Any, Any]) -> Any:  # noqa: ANN401 - the method says
    """The request; one that is cut off or compressed is a `FormatError`."""
    try:
        return await stream.recv_message()
    except (AssertionError, NotImplementedError) as error:  # the library has no errors of its own for these
        raise FormatError(str(error), structure="request", field="") from error


class _Translated:
    """Turns our errors into statuses. Unexpected exceptions are logged here; the peer gets their type alone."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfcomError):
            raise GRPCError(status_of(error), f"{error.code}: {error.message}") from error
        if isinstance(error, Exception) and not isinstance(error, GRPCError | StreamTerminatedError):
            structlog.get_logger().error("kubelet.failure", exc_info=error)
            raise GRPCError(Status.INTERNAL, type(error).__name__) from error


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"{path} is too long for a socket: {MAX_PATH} bytes at most", advice="Name a shorter directory."
        )
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:  # for want of descriptors
        raise PlatformUnavailable(f"cannot listen at {path}: {error.strerror}", retryable=True) from error
    try:
        clear_path(path)
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)
        listener.listen(16)
    except OSError as error:
        listener.close()
        if (links := _links(path.parent)) == 0:
            raise PlatformUnavailable(
                f"cannot listen at {path}: {path.parent} was removed from the node",
                advice="A mount shows the removed folder until the plugin starts again.",
            ) from error
        reason = f"{path.parent} is not there" if links is None else error.strerror or error
        raise PlatformUnavailable(
            f"cannot listen at {path}: {reason}",
            retryable=True,
            advice="The plugin has to write in the kubelet's directory: mount it, and run as root.",
        ) from error
    except ConfigError:
        listener.close()
        raise
    return listener


def _links(folder: Path) -> int | None:
    """Links to a folder, 0 for one that was removed and is still mounted; None if it is not there."""
    try:
        return folder.stat().st_nlink
    except OSError:
        return None
