"""One process with Intel's libraries, as its parent holds it: start, ask within a time, kill. No second chances."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from confcom import errors
from confcom.errors import ConfcomError, FormatError, NativeError, PlatformBusy, PlatformError, PlatformUnavailable

# Messages between a process with Intel's libraries and its parent: one per datagram, MessagePack.
#
# The channel is a pair of SOCK_SEQPACKET sockets, so a message is whole or not there. The worker sends `Ready` or
# `Failed` when its libraries are loaded; then every request gets one answer. Native code runs in the worker, so its
# messages are not trusted: they are bounded and checked for their form.


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


REAP_TIMEOUT = 1.0
"""Seconds for a killed process to be gone; one that is stuck in the kernel is left to be reaped later."""


class WorkerLost(Exception):
    """The process cannot be asked any more.

    `to_blame`: another worker will likely fail in the same way, since this one was neither idle nor killed from
    outside.
    """

    def __init__(self, reason: str, *, to_blame: bool, hung: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.to_blame = to_blame
        self.hung = hung


class Surroundings(Protocol):
    """What workers have beside this process's own environment."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that are set for them."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that they inherit, under the same numbers."""

    def close(self) -> None:
        """Give back what they used; no worker is left."""


def worker_command(folder: Path | None) -> tuple[str, ...]:
    """The command of a worker, to which its file descriptor is added. `-P`: the working folder is not to be trusted."""
    if not sys.executable:
        raise PlatformUnavailable(
            "this program does not know its Python interpreter, so it can start no worker",
            advice="Use IntelDcapPlatform in this process instead.",
        )
    words = () if folder is None else (str(folder.absolute()),)
    return (sys.executable, "-B", "-P", "-m", "confcom.platforms.intel.main", *words)


class WorkerProcess:
    """A running worker. Owns the process and one socket; `close` gives both back."""

    def __init__(
        self,
        command: Sequence[str],
        monotonic: Callable[[], float] = time.monotonic,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._ready = False
        self._creator = os.getpid()
        try:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise PlatformBusy(f"no worker could be started: {error.strerror}") from error
        self._channel.setblocking(False)
        with theirs:
            try:
                self._process = _spawn(command, theirs.fileno(), surroundings)
            except OSError as error:
                self._channel.close()
                raise PlatformBusy(f"no worker could be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_ours(self) -> bool:
        """Whether this process started it; after a fork the child must not use it."""
        return self._creator == os.getpid()

    def wait_until_ready(self, deadline: float) -> None:
        """Wait for the libraries to be loaded; raises what kept them from it, or `WorkerLost`."""
        if self._ready:
            return
        answer = self._receive(deadline)
        if isinstance(answer, Failed):
            raise answer.error()
        if not isinstance(answer, Ready):
            raise NativeError(f"the worker began with {type(answer).__name__}")
        self._ready = True

    def ask(self, request: WorkerRequest, deadline: float) -> WorkerAnswer:
        """Ask and wait for the answer until a time of the monotonic clock; `WorkerLost` when there is none."""
        try:
            self._channel.send(pack(request))
        except OSError as error:
            raise self._lost(idle=True) from error
        return self._receive(deadline)

    def send(self, request: WorkerRequest) -> int:
        """Send a request. Gives the descriptor to watch for its answer, -1 when it was not sent."""
        try:
            self._channel.send(pack(request))
        except OSError:
            return -1
        return self._channel.fileno()

    def receive(self) -> WorkerAnswer | None:
        """The answer that has arrived, without waiting; None when there is none that can be read."""
        try:
            return parse_answer(self._channel.recv(MAX_MESSAGE))
        except (OSError, FormatError):
            return None

    def close(self) -> int | None:
        """End the process at once and forget it; its exit status, or None if it is stuck in the kernel."""
        if not self.is_ours:
            self._channel.close()
            self._process.returncode = 0  # our parent's; there is nothing to wait for
            return 0
        self._process.kill()
        try:
            return self._process.wait(REAP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Last: a thread that waits for an answer has seen the end of the process by now.
            self._channel.close()

    def is_reaped(self) -> bool:
        """Whether a process that `close` left behind is gone now."""
        return self._process.poll() is not None

    def _receive(self, deadline: float) -> WorkerAnswer:
        arrival = select.poll()
        arrival.register(self._channel, select.POLLIN)
        if not arrival.poll(max(deadline - self._monotonic(), 0.001) * 1000):
            raise WorkerLost("the worker did not answer in time", to_blame=True, hung=True)
        try:
            data = self._channel.recv(MAX_MESSAGE)
        except OSError:
            data = b""
        if not data:
            raise self._lost(idle=False)
        try:
            return parse_answer(data)
        except FormatError as error:
            raise WorkerLost(f"the worker answered nonsense: {error}", to_blame=True) from error

    def _lost(self, *, idle: bool) -> WorkerLost:
        try:
            status = self._process.wait(REAP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return WorkerLost("the worker closed its end", to_blame=not idle)
        if status < 0:
            killed = status == -signal.SIGKILL
            return WorkerLost(f"the worker was ended by {_signal_name(-status)}", to_blame=not (idle or killed))
        return WorkerLost(f"the worker ended with status {status}", to_blame=not idle)


def _spawn(command: Sequence[str], fd: int, surroundings: Surroundings | None) -> subprocess.Popen[bytes]:
    environment = None if surroundings is None else {**os.environ, **surroundings.environment}
    inherited = () if surroundings is None else surroundings.descriptors
    # Its standard output is our standard error: the libraries print, and our own output may be a quote. A session of
    # its own keeps the terminal's signals away.
    return subprocess.Popen(  # noqa: S603 - a command of our own
        [*command, str(fd)],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(fd, *inherited),
        env=environment,
        start_new_session=True,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
