"""The log of requests: one line of JSON for each, written by a thread, with limits per peer.

A slow or closed reader of the log does not delay clients: lines beyond `MAX_LINES` are dropped and counted, and the
count is logged. A peer that asks very often has a line for some of its requests only, so that its flood does not
displace the lines of other peers; the others are counted and summed up.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec
import structlog

from confcom.services.quote_helper.connection import RequestEvent

FLUSH_AFTER = 0.1
"""Seconds that a line may wait for company."""
MAX_LINES = 50_000
"""Lines that wait for a slow reader, about 15 MB; more are lost, and counted."""
BURST = 500
"""Lines that a peer may fill at once."""
RATE = 20.0
"""So many more a second; a log that is rotated at 50 MiB then holds two hours of one peer's flood."""
SUM_UP_AFTER = 10.0
"""Seconds between two lines that say how many requests of a peer had none."""
MAX_PEERS = 512
"""Peers that have a share of their own; all others have one together."""
OTHERS = "others"
_ATOMIC = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF), so that lines of other writers fall between ours."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Share:
    """What is left of a peer's lines, and what was left out: requests by kind and outcome."""

    __slots__ = ("left_out", "lines", "seen")

    def __init__(self, now: float) -> None:
        self.lines = float(BURST)
        self.seen = now
        self.left_out: dict[str, int] = {}

    def take(self, now: float) -> bool:
        """Whether there is a line left."""
        self.lines = min(float(BURST), self.lines + (now - self.seen) * RATE)
        self.seen = now
        if self.lines < 1:
            return False
        self.lines -= 1
        return True


def log_request(event: RequestEvent) -> None:
    """Write the one log event of a request; silent visits (a probe, say) only count as debug."""
    logger = structlog.get_logger()
    write = logger.debug if event.is_silent else logger.info
    write("aesm.request", **event.fields())


class RequestLog:
    """Collects lines and writes them in a thread of its own. Call `close` to have the last ones written."""

    def __init__(
        self,
        *,
        verbose: bool = False,
        write: Callable[[bytes], object] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verbose = verbose
        self._write = write if write is not None else _write_to_stderr
        self._monotonic = monotonic
        self._lines: deque[bytes] = deque()  # appended to by one thread, emptied by another
        self._lost = 0
        self._lost_before = 0
        self._shares: dict[str, _Share] = {}
        self._shares_lock = threading.Lock()
        self._summed_up = monotonic()
        self.left_out = 0
        """Requests without a line of their own so far."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that could not be written so far."""
        return self._lost_before + self._lost

    def record(self, event: RequestEvent) -> None:
        """Take an event; never blocks."""
        level = "info"
        if event.is_silent:
            if not self._verbose:
                return
            level = "debug"
        if self._is_left_out(event):
            return
        if len(self._lines) >= MAX_LINES:
            self._lost += 1
            return
        self._lines.append(_line("aesm.request", level, event.fields(), event.ended))

    def _is_left_out(self, event: RequestEvent) -> bool:
        now = self._monotonic()
        with self._shares_lock:
            name = event.peer if event.peer in self._shares or len(self._shares) < MAX_PEERS else OTHERS
            share = self._shares.get(name)
            if share is None:
                share = self._shares[name] = _Share(now)
            if share.take(now):
                return False
            what = f"{event.kind or 'none'} {event.outcome}"
            share.left_out[what] = share.left_out.get(what, 0) + 1
            self.left_out += 1
        return True

    def _sum_up(self) -> None:
        now = self._monotonic()
        self._summed_up = now
        with self._shares_lock:
            for peer, share in list(self._shares.items()):
                if share.left_out:
                    fields = {"peer": peer, "requests": share.left_out, "reason": "too many for a line each"}
                    self._lines.append(_line("aesm.left_out", "info", fields, time.time()))
                    share.left_out = {}
                elif share.lines + (now - share.seen) * RATE >= BURST:
                    del self._shares[peer]

    def close(self) -> None:
        """Write what is left; waits two seconds for a reader at most."""
        self._stop.set()
        self._thread.join(2)

    def _work(self) -> None:
        # With nothing to write this wakes up ten times a second and does nothing; that is cheaper than being woken.
        while not self._stop.wait(FLUSH_AFTER):
            if self._monotonic() - self._summed_up >= SUM_UP_AFTER:
                self._sum_up()
            self._flush()
        self._sum_up()
        self._flush()

    def _flush(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._lost_before += lost
            fields = {"lost": lost, "reason": "the log's reader is too slow"}
            self._lines.append(_line("aesm.log", "warning", fields, time.time()))
        batch: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines.popleft()
            if batch and size + len(line) > _ATOMIC:
                self._put(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        if batch:
            self._put(batch)

    def _put(self, batch: list[bytes]) -> None:
        try:
            self._write(b"".join(batch))
        except OSError:  # its reader is gone
            self._lost += len(batch)


def _line(name: str, level: str, fields: Mapping[str, object], at: float) -> bytes:
    timestamp = datetime.fromtimestamp(at, UTC)
    return _encode({**fields, "event": name, "level": level, "timestamp": timestamp}) + b"\n"


def _write_to_stderr(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]
