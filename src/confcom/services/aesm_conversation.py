"""One client of the quote helper: its socket, what it said, and what is told of it afterwards."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from confcom.protocols.aesm import CLOSED, NEED_DATA, Closed, NeedData, ServerConnection
from confcom.protocols.aesm_exchanges import IncompleteRequest, exchange_of
from confcom.protocols.aesm_messages import Request
from confcom.protocols.aesm_status import AesmStatus
from confcom.services.aesm_broker import Answer

READ_SIZE = 64 * 1024

_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """What is told of a request once its connection has ended; never quotes, reports or keys.

    `outcome` is `answered`, `refused` (with an AESM status) or `closed` (before the client had an answer). `kind` is
    None when no request was understood, `status` when none was sent. `pid` and `uid` are the peer's, as the kernel
    saw it connect; a pid of another namespace is 0. Sizes are those of the frames, in bytes; `duration` in seconds.
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

    def fields(self) -> dict[str, Any]:
        """The event for the log; without what is empty."""
        named = {
            "kind": self.kind,
            "outcome": self.outcome,
            "code": None if self.status is None else int(self.status),
            "error": self.error,
            "reason": self.reason or None,
            "duration_ms": round(self.duration * 1000, 3),
            "pid": self.pid,
            "uid": self.uid,
            "request_size": self.request_size,
            "response_size": self.response_size,
        }
        return {name: value for name, value in named.items() if value is not None}


class Conversation:
    """A connection of one request and one answer. Its owner keeps the deadlines."""

    __slots__ = ("_answer", "_connection", "_peer", "_received", "_request", "_sent", "_socket", "started")

    def __init__(self, client: socket.socket, max_request: int, started: float) -> None:
        self._socket = client
        self.started = started
        self._connection = ServerConnection(max_request)
        self._request: Request | IncompleteRequest | None = None
        self._answer: Answer | None = None
        self._received = 0
        self._sent = 0
        self._peer = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The socket's descriptor, so that an event loop can watch it."""
        return self._socket.fileno()

    def read(self) -> Request | IncompleteRequest | NeedData | Closed:
        """Read what has arrived; never blocks."""
        while (event := self._connection.next_event()) is NEED_DATA:
            try:
                data = self._socket.recv(READ_SIZE)
            except BlockingIOError:
                return NEED_DATA
            self._received += len(data)
            self._connection.receive_data(data)
        if event is not CLOSED:
            self._request = event
        return event

    def write(self, answer: Answer) -> bytes:
        """Write the answer: in one piece, unless the client's buffer is too small for it. Returns what is left."""
        frame = self._connection.send(answer.response)
        self._answer = answer
        with suppress(BlockingIOError):
            self._sent = self._socket.send(frame)
        return frame[self._sent :]

    async def write_rest(self, rest: bytes) -> None:
        """Write on as the client reads."""
        await asyncio.get_running_loop().sock_sendall(self._socket, rest)
        self._sent += len(rest)

    def is_wanted(self) -> bool:
        """Whether the client still waits. One that has only ended its own sending does."""
        poll = select.poll()
        try:
            poll.register(self._socket, 0)  # asks for nothing but POLLHUP and POLLERR
        except ValueError:  # closed by us
            return False
        return not poll.poll(0)

    def close(self, now: float, reason: str = "") -> RequestEvent:
        """Close the socket; `reason` says why a conversation did not get to its end."""
        self._socket.close()
        answer, error, cut_off = self._answer, None, bool(reason)
        if answer is not None and answer.error is not None:
            error, reason = answer.error.code, reason or answer.error.message
        pid, uid, _ = self._peer
        return RequestEvent(
            kind=exchange_of(self._request).name if self._request is not None else None,
            outcome="closed" if answer is None or cut_off else "answered" if error is None else "refused",
            status=answer.response.status if answer is not None else None,
            error=error,
            reason=reason,
            duration=now - self.started,
            pid=pid,
            uid=uid,
            request_size=self._received,
            response_size=self._sent,
        )
