"""Who is behind a connection, and how much of the helper each of them has in use.

A peer is a pod where the kernel lets us see one (through the cgroup of the connecting process), otherwise a container,
otherwise a user id. In a container of its own the helper sees other pods' processes only with `hostPID`; without it,
every peer is known by its user id.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from confcom.devices.process_cgroup import MAX_CGROUP, NOBODY, parse_cgroup

if TYPE_CHECKING:
    from confcom.services.aesm_conversation import Conversation

REMEMBER = 2.0
"""Seconds for which a process id means the same pod; process ids are used again, but not that soon."""
MAX_REMEMBERED = 4096
OURSELVES = "the helper itself"
"""Its self-tests must not fail because others of its user have used up their share."""


class Peer:
    """One peer's share: `connections` are open now, `tokens` are left of its rate."""

    __slots__ = ("connections", "name", "refilled", "silent", "tokens")

    def __init__(self, name: str, tokens: float, now: float) -> None:
        self.name = name
        self.connections = 0
        self.tokens = tokens
        self.refilled = now
        # Its connections whose request has not arrived, in their order.
        self.silent: dict[Conversation, None] = {}


class Peers:
    """All peers that have connections. `rate` is in requests per second and may be 0: no limit."""

    def __init__(
        self, host: Path, *, max_connections: int, rate: float, burst: int, monotonic: Callable[[], float]
    ) -> None:
        self._host = host
        self._max_connections = max_connections
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._own_pid = os.getpid()
        self._peers: dict[str, Peer] = {}
        self._names: dict[tuple[int, int], tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def enter(self, pid: int, uid: int, now: float | None = None) -> Peer:
        """Count a connection of a process; `now` is the clock's time, where the caller has just looked."""
        if now is None:
            now = self._monotonic()
        known = self._names.get((pid, uid))
        name = known[0] if known is not None and known[1] >= now else self._look_up(pid, uid, now)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = Peer(name, self._burst, now)
        peer.connections += 1
        return peer

    def leave(self, peer: Peer) -> None:
        """Count its end."""
        peer.connections -= 1
        if not peer.connections and not self._rate:
            self._peers.pop(peer.name, None)

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

    def forget(self) -> None:
        """Drop what is not needed any more; to be called now and then."""
        now = self._monotonic()
        for process in [process for process, (_, until) in self._names.items() if until < now]:
            del self._names[process]
        if self._rate:
            whole = self._burst / self._rate
            for peer in [peer for peer in self._peers.values() if not peer.connections]:
                if now - peer.refilled > whole:
                    del self._peers[peer.name]

    def _look_up(self, pid: int, uid: int, now: float) -> str:
        name = OURSELVES if pid == self._own_pid else peer_name(self._host, pid, uid)
        if len(self._names) >= MAX_REMEMBERED:
            self._names.clear()
        self._names[pid, uid] = (name, now + REMEMBER)
        return name


def peer_name(host: Path, pid: int, uid: int) -> str:
    """`pod <uid of the pod>`, `container <id>` or `uid <number>`; `host` is the root that has `proc` in it."""
    if pid > 0:  # a process of another namespace is 0
        try:
            with (host / "proc" / str(pid) / "cgroup").open("rb") as file:
                owner = parse_cgroup(file.read(MAX_CGROUP))
        except OSError:
            owner = NOBODY
        if owner.pod is not None:
            return f"pod {owner.pod}"
        if owner.container is not None:
            return f"container {owner.container[:12]}"
    return f"uid {uid}"
