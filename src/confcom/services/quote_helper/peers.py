"""The peers behind connections, and what each of them uses of the helper.

A peer is a pod where the kernel lets us see one (through the cgroup of the connecting process), otherwise a container,
otherwise a user id. In a container of its own the helper sees other pods' processes only with `hostPID`; without it,
every peer is known by its user id.
"""

from __future__ import annotations

import _socket
import errno
import math
import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from confcom.devices.processes import MAX_CGROUP, NOBODY, parse_cgroup

if TYPE_CHECKING:
    from confcom.services.quote_helper.connection import Conversation

REMEMBER = 2.0
"""Seconds for which a process id means the same pod, where the kernel does not say that the process has ended."""
MAX_REMEMBERED = 128
"""Processes that are remembered at most; each takes a file descriptor."""
FUTILE = 1024
"""Connections without an answer that a peer may make at once; further ones are closed unread."""
FUTILE_RATE = 200.0
"""So many more each second."""
OURSELVES = "the helper itself"
"""The peer of its self-tests, which must not fail when other processes of its user have used up their share."""
GONE = "ended processes"
"""All processes that ended before they were looked up, and what those left behind that are known by their user: one
could make as many as it likes."""

UCRED = struct.Struct("=iII")
"""`struct ucred`: pid, uid, gid."""
_SCARCITY = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_SO_PEERPIDFD = 77  # since Linux 6.5; not in Python's socket module


class Peer:
    """One peer's share: `connections` are open now; `tokens` are left of its rate, `futile` of its futile visits."""

    __slots__ = ("active", "connections", "futile", "name", "refilled", "seen", "silent", "tokens", "turned_away")

    def __init__(self, name: str, tokens: float, now: float) -> None:
        self.name = name
        self.connections = 0
        self.active = False  # whether it connected since the last look at floods
        self.tokens = tokens
        self.refilled = now
        self.futile = float(FUTILE)
        self.seen = now  # when `futile` was brought up to date
        self.turned_away = 0  # connections closed unread and not yet reported
        # Its connections whose request has not arrived, in their order.
        self.silent: dict[Conversation, None] = {}


class _Process(NamedTuple):
    peer: str
    pid: int
    uid: int
    until: float
    pidfd: int  # -1: none


class Peers:
    """All peers that have connections, or had lately. `rate` is in requests per second and may be 0: no limit.

    `ended` becomes readable when processes that are remembered have ended; `forget_ended` must be called then.
    """

    def __init__(
        self,
        host: Path,
        *,
        max_connections: int,
        rate: float,
        burst: int,
        monotonic: Callable[[], float],
        remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._host = host
        self._max_connections = max_connections
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._remembered = remembered
        self._own_pid = os.getpid()
        self._peers: dict[str, Peer] = {}
        self._processes: dict[bytes, _Process] = {}
        self._pidfds: dict[int, bytes] = {}
        self.ended = select.epoll()
        self.looked_up = 0
        """Processes looked up since this was last set to 0."""
        self.several = False
        """Whether more than one peer connected between the last two looks at who is active."""

    def __len__(self) -> int:
        return sum(1 for peer in self._peers.values() if peer.connections)

    def of(self, client: _socket.socket, now: float) -> tuple[Peer, bytes]:
        """The peer of a connection, and the `struct ucred` of the process that made it."""
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        process = self._processes.get(credentials)
        if process is None or process.until < now:
            self.looked_up += 1
            if process is not None:
                self._forget(credentials)
            process = self._look_up(client, credentials, now)
        peer = self._peers.get(process.peer) or self._peer(process.peer, now)
        peer.active = True
        return peer, credentials

    def gone(self) -> Peer:
        """The peer of all processes that have ended."""
        return self._peer(GONE, self._monotonic())

    def _peer(self, name: str, now: float) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = Peer(name, self._burst, now)
        return peer

    def is_welcome(self, peer: Peer, now: float) -> bool:
        """Whether one more of its connections is read."""
        if peer.name == OURSELVES:
            return True
        if peer.futile < FUTILE:
            peer.futile = min(float(FUTILE), peer.futile + (now - peer.seen) * FUTILE_RATE)
        peer.seen = now
        # Up to twice the limit are read and get BUSY; further ones are closed unread.
        return peer.futile >= 1 and peer.connections < 2 * self._max_connections

    def take_futile(self, peer: Peer) -> bool:
        """Charge a peer for a connection that came to nothing; False when its allowance is used up."""
        peer.futile = max(0.0, peer.futile - 1)
        return peer.futile >= 1

    def over_connections(self, peer: Peer) -> bool:
        """Whether the peer has more connections than one may."""
        return peer.connections > self._max_connections

    def take_token(self, peer: Peer) -> bool:
        """Whether one more request is within the peer's rate."""
        if not self._rate:
            return True
        now = self._monotonic()
        peer.tokens = min(self._burst, peer.tokens + (now - peer.refilled) * self._rate)
        peer.refilled = now
        if peer.tokens < 1:
            return False
        peer.tokens -= 1
        return True

    def active(self) -> int:
        """How many peers connected since the last call, without our own self-tests."""
        count = sum(peer.active for peer in self._peers.values() if peer.name != OURSELVES)
        for peer in self._peers.values():
            peer.active = False
        self.several = count > 1
        return count

    def turned_away(self) -> list[tuple[str, int]]:
        """Which peers had connections closed unread since the last call, and how many."""
        found = [(peer.name, peer.turned_away) for peer in self._peers.values() if peer.turned_away]
        for peer in self._peers.values():
            peer.turned_away = 0
        return found

    def forget(self) -> None:
        """Drop expired processes and idle peers; called regularly."""
        now = self._monotonic()
        for credentials in [one for one, process in self._processes.items() if process.until < now]:
            self._forget(credentials)
        whole = max(FUTILE / FUTILE_RATE, self._burst / self._rate if self._rate else 0.0)
        for peer in [peer for peer in self._peers.values() if not peer.connections and not peer.turned_away]:
            if (peer.futile == FUTILE and peer.tokens == self._burst) or now - max(peer.seen, peer.refilled) > whole:
                del self._peers[peer.name]

    def forget_ended(self) -> None:
        """Drop the processes that have ended: their ids may be others' from now on."""
        for pidfd, _ in self.ended.poll(0):
            credentials = self._pidfds[pidfd]
            peer = self._peers.get(self._processes[credentials].peer)
            self._forget(credentials)
            if peer is not None and peer.name.startswith("uid "):
                self._leave_behind(peer, credentials)

    def _leave_behind(self, peer: Peer, credentials: bytes) -> None:
        # Another process holds these connections now, and may have made any number of such processes.
        for conversation in [one for one in peer.silent if one.credentials == credentials]:
            del peer.silent[conversation]
            peer.connections -= 1
            conversation.peer = self.gone()
            conversation.peer.silent[conversation] = None
            conversation.peer.connections += 1

    def close(self) -> None:
        for credentials in list(self._processes):
            self._forget(credentials)
        self.ended.close()

    def _look_up(self, client: _socket.socket, credentials: bytes, now: float) -> _Process:
        pid, uid, _ = UCRED.unpack(credentials)
        if pid > 0 and not _runs(pid):  # first, and quickly: a flood of short-lived processes ends here
            return _Process(GONE, pid, uid, now, -1)
        if len(self._processes) >= self._remembered:
            self._forget(next(iter(self._processes)))
        if pid <= 0 or pid == self._own_pid:  # a process of another namespace is 0
            name = f"uid {uid}" if pid <= 0 else OURSELVES
            process = self._processes[credentials] = _Process(name, pid, uid, now + REMEMBER, -1)
            return process
        try:
            pidfd = self._watch(client, credentials)
        except ProcessLookupError:
            return _Process(GONE, pid, uid, now, -1)
        self._processes[credentials] = _Process(GONE, pid, uid, now, pidfd)
        if self._still_runs(credentials):
            until = now + REMEMBER if pidfd < 0 else math.inf
            try:
                name = peer_name(self._host, pid, uid)
            except OSError:  # nothing was learned: its next connection is looked up again
                name, until = f"uid {uid}", now
            # Had it ended meanwhile, the cgroup would be that of another process with its id.
            if self._still_runs(credentials):
                process = self._processes[credentials] = _Process(name, pid, uid, until, pidfd)
                return process
        self._forget(credentials)
        return _Process(GONE, pid, uid, now, -1)

    def _watch(self, client: _socket.socket, credentials: bytes) -> int:
        """The pidfd of the process that connected, -1 where the kernel gives none; `ProcessLookupError` if it ended."""
        try:
            pidfd = client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
                raise ProcessLookupError from error
            return -1
        try:
            self.ended.register(pidfd, select.EPOLLIN)
        except OSError:  # the kernel limits what a user watches
            os.close(pidfd)
            return -1
        self._pidfds[pidfd] = credentials
        return pidfd

    def _still_runs(self, credentials: bytes) -> bool:
        process = self._processes[credentials]
        if process.pidfd >= 0:
            self.forget_ended()
            return credentials in self._processes
        return _runs(process.pid)

    def _forget(self, credentials: bytes) -> None:
        process = self._processes.pop(credentials, None)
        if process is not None and process.pidfd >= 0:
            del self._pidfds[process.pidfd]
            os.close(process.pidfd)


def peer_name(host: Path, pid: int, uid: int) -> str:
    """`pod <uid of the pod>`, `container <id>` or `uid <number>`; `host` is the root that has `proc` in it.

    An `OSError` is for want of descriptors or memory, and says nothing of the process.
    """
    try:
        descriptor = os.open(f"{host}/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = parse_cgroup(os.read(descriptor, MAX_CGROUP))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _SCARCITY:
            raise
        owner = NOBODY
    if owner.pod is not None:
        return f"pod {owner.pod}"
    if owner.container is not None:
        return f"container {owner.container[:12]}"
    return f"uid {uid}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
