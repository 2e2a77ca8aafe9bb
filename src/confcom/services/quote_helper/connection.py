"""One connection of the quote helper: its socket, its request, its answer, and the event for log and metrics."""

from __future__ import annotations

import _socket
import asyncio
import select
import socket
import time
from contextlib import suppress
from typing import Any, NamedTuple

from confcom.protocols.aesm import (
    CLOSED,
    NEED_DATA,
    Closed,
    IncompleteRequest,
    NeedData,
    Request,
    ServerConnection,
    exchange_of,
)
from confcom.protocols.aesm_status import AesmStatus
from confcom.services.quote_helper.broker import Answer, PlatformCall
from confcom.services.quote_helper.peers import UCRED, Peer

READ_SIZE = 16 * 1024

_NOW = socket.MSG_DONTWAIT
# Sockets stay blocking until they have to wait, and are read and written without waiting: that saves a system call.
_PEEK = socket.MSG_DONTWAIT | socket.MSG_PEEK
# What is taken from a socket makes room there, and for that the kernel wakes a client that waits for its answer. So a
# request stays there until the answer is sent.


class RequestEvent(NamedTuple):
    """One connection that has ended, for log and metrics; holds no quotes, reports or keys.

    `outcome` is `answered`, `refused` (with an AESM status) or `closed` (before the client had an answer). `kind` is
    None when no request was understood, `status` when none was sent. `pid` and `uid` are the peer's, as the kernel
    saw it connect; a pid of another namespace is 0; `peer` is its pod, container or user. Sizes are those of the
    frames, in bytes; `duration` in seconds; `ended` in seconds since 1970.
    """

    kind: str | None
    outcome: str
    status: AesmStatus | None
    error: str | None
    reason: str
    duration: float
    pid: int
    uid: int
    request_size: int
    response_size: int
    peer: str
    ended: float

    @property
    def is_silent(self) -> bool:
        """Whether the connection ended without a request, as a probe's does."""
        return self.kind is None and self.outcome == "closed"

    def fields(self) -> dict[str, Any]:
        """The event for the log; without what is empty, and a peer that says no more than `uid` does."""
        found = {
            "kind": self.kind,
            "outcome": self.outcome,
            "code": None if self.status is None else int(self.status),
            "error": self.error,
            "reason": self.reason or None,
            "duration_ms": round(self.duration * 1000, 3),
            "pid": self.pid,
            "uid": self.uid,
            "peer": self.peer if self.peer.startswith(("pod ", "container ")) else None,
            "request_size": self.request_size,
            "response_size": self.response_size,
        }
        return {name: value for name, value in found.items() if value is not None}


class Conversation:
    """A connection of one request and one answer. Its owner keeps the deadlines."""

    __slots__ = (
        "_connection", "_duration", "_ended", "_error", "_error_code", "_peeked", "_reason", "_received", "_sent",
        "_socket", "_status", "call", "credentials", "has_turn", "over_limit", "peer", "request", "since", "started",
    )  # fmt: skip

    call: PlatformCall
    """What only the platform can answer, once `since` is set."""
    since: float
    """When such a request was read, on the event loop's clock."""

    def __init__(
        self, client: _socket.socket, peer: Peer, credentials: bytes, max_request: int, started: float
    ) -> None:
        self._socket = client
        self.started = started
        self.peer = peer
        self.credentials = credentials
        self.over_limit = False
        self.has_turn = True
        """Whether it waits for its turn to be read."""
        self.request: Request | IncompleteRequest | None = None
        """The request, once it has been read."""
        self._connection = ServerConnection(max_request)
        self._status: AesmStatus | None = None
        self._error_code: str | None = None
        self._error = ""
        self._received = 0
        self._peeked = 0  # of these, so many are still in the socket
        self._sent = 0

    @property
    def is_closed(self) -> bool:
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The socket's descriptor, so that an event loop can watch it."""
        return self._socket.fileno()

    def read(self) -> Request | IncompleteRequest | NeedData | Closed:
        """Read what has arrived; never blocks."""
        event: Request | IncompleteRequest | NeedData | Closed = NEED_DATA
        while event is NEED_DATA:
            self._take()
            try:
                data = self._socket.recv(READ_SIZE, _PEEK)
            except BlockingIOError:
                return NEED_DATA
            self._peeked = len(data)
            self._received += self._peeked
            self._connection.receive_data(data)
            event = self._connection.next_event()
        if event is not CLOSED:
            self.request = event
        return event

    def write(self, answer: Answer) -> bytes:
        """Write the answer: in one piece, unless the client's buffer is too small for it. Returns what is left.

        Closes at once when nothing is left, because a client reads to the end of the stream.
        """
        self._status = answer.response.status
        if answer.error is not None:
            self._error_code, self._error = answer.error.code, answer.error.message
        frame = self._connection.send(answer.response)
        try:
            self._sent = self._socket.send(frame, _NOW)
        except BlockingIOError:
            return frame
        if self._sent < len(frame):
            return frame[self._sent :]
        self._take()
        self._socket.close()
        return b""

    async def write_rest(self, rest: bytes) -> None:
        """Write on as the client reads."""
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(self._socket, rest)  # type: ignore[arg-type]  # its base will do
        self._sent += len(rest)

    def is_wanted(self) -> bool:
        """Whether the client still waits. One that has only ended its own sending does."""
        poll = select.poll()
        try:
            poll.register(self._socket, 0)  # asks for nothing but POLLHUP and POLLERR
        except ValueError:  # closed by us
            return False
        return not poll.poll(0)

    def close(self, now: float, reason: str = "") -> bool:
        """Close the socket; `reason` says why a conversation did not get to its end. Returns whether it did."""
        if self._peeked:
            with suppress(OSError):
                self._take()
        self._socket.close()
        self._duration, self._ended, self._reason = now - self.started, time.time(), reason
        return self._status is not None and not reason

    def _take(self) -> None:
        """Take what was read out of the socket; closed with bytes in it, it would be an error for the client."""
        if self._peeked:
            self._socket.recv(self._peeked, _NOW)
            self._peeked = 0

    def event(self) -> RequestEvent:
        """How it ended, once it is closed."""
        pid, uid, _ = UCRED.unpack(self.credentials)
        refused, cut_off = self._error_code is not None, bool(self._reason)
        return RequestEvent(
            exchange_of(self.request).name if self.request is not None else None,
            "closed" if self._status is None or cut_off else "refused" if refused else "answered",
            self._status,
            self._error_code,
            self._reason or self._error,
            self._duration,
            pid,
            uid,
            self._received,
            self._sent,
            self.peer.name,
            self._ended,
        )
