"""The helper's side of its quoting workers: starts them, gives them requests, notices their end, starts them anew."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from confcom.services.pending_request import PendingRequest
from confcom.services.quoting_worker import MAX_PACKET, READY, Reply, WorkerSettings

DEPTH = 16
"""Requests that one worker has at a time: waking it, and being woken by it, is then paid for once for several."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
"""Seconds between the end of a worker that never answered and the next; doubles from the one to the other."""

_decode = msgspec.msgpack.Decoder(Reply).decode


class QuotingWorker:
    """One worker, from its first start on; `is_ready` while it can be given requests."""

    def __init__(
        self,
        settings: WorkerSettings,
        deliver: Callable[[PendingRequest, Reply], None],
        lost: Callable[[list[PendingRequest]], None],
        idle: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._deliver = deliver
        self._lost = lost
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[PendingRequest] = deque()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._packet = memoryview(bytearray(MAX_PACKET))
        self._ready = False
        self._answered = False
        self._pause = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self.starts = 0
        self.first_try: asyncio.Future[None] = self._loop.create_future()
        self._start()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has opened its platform and lives."""
        return self._ready

    @property
    def has_room(self) -> bool:
        """Whether it can take a request now."""
        return self._ready and len(self._jobs) < DEPTH

    @property
    def oldest(self) -> PendingRequest | None:
        """The request that it works on."""
        return self._jobs[0] if self._jobs else None

    @property
    def busy(self) -> int:
        """How many requests it has."""
        return len(self._jobs)

    def give(self, job: PendingRequest) -> bool:
        """Hand it a request; False when it cannot take it."""
        assert self._channel is not None  # noqa: S101 - has_room said so
        try:
            self._channel.send(job.conversation.frame(), socket.MSG_DONTWAIT)
        except BlockingIOError:  # the channel is full of long requests
            return False
        except OSError:
            self.kill()
            return False
        self._jobs.append(job)
        return True

    def kill(self) -> None:
        """End it as it is; its requests come back through `lost`."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End it for good."""
        if self._restart is not None:
            self._restart.cancel()
        if self._channel is not None:
            self._loop.remove_reader(self._channel)
            self._channel.close()
        process, self._process, self._ready = self._process, None, False
        if process is not None:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self) -> None:
        self._restart = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        settings = msgspec.json.encode(self._settings).decode()
        # -P: nothing is imported from the directory that the helper happens to run in.
        command = [sys.executable, "-P", "-m", "confcom.services.quoting_worker", settings]
        with theirs:
            try:
                self._process = subprocess.Popen(command, stdin=theirs.fileno())  # noqa: S603 - our own program
            except OSError as error:  # no process or memory to be had at this moment
                ours.close()
                self._plan_restart(str(error))
                return
        self.starts += 1
        self._channel = ours
        self._answered = False
        self._loop.add_reader(ours, self._receive, ours)

    def _receive(self, channel: socket.socket) -> None:
        while self._channel is channel:
            try:
                packet = self._packet[: channel.recv_into(self._packet)]
            except BlockingIOError:
                break
            except OSError:
                packet = self._packet[:0]
            if not (self._ready and packet):
                self._take_news(packet)
                break
            self._answered = True
            self._deliver(self._jobs.popleft(), _decode(packet))
            if not self._jobs:
                break
        self._idle()

    def _take_news(self, packet: memoryview) -> None:
        if not packet:
            self._ended("it ended")
        elif packet == READY:
            self._ready = True
            structlog.get_logger().debug("aesm.worker", outcome="ready", worker=self.pid)
            self._tried()
        else:
            self._ended(str(packet, "utf-8", "replace"))

    def _ended(self, reason: str) -> None:
        assert self._channel is not None  # noqa: S101 - only _receive calls this
        self._loop.remove_reader(self._channel)
        self._channel.close()
        process, self._process, self._channel, self._ready = self._process, None, None, False
        if process is not None:
            process.kill()
            process.wait()
            reason = f"{reason} (exit status {process.returncode})"
        lost = list(self._jobs)
        self._jobs.clear()
        self._plan_restart(reason)
        self._tried()
        if lost:
            lost[0].deaths += 1  # the one that it worked on; the others only waited
            self._lost(lost)

    def _plan_restart(self, reason: str) -> None:
        self._pause = 0.0 if self._answered else min(max(FIRST_PAUSE, self._pause * 2), LONGEST_PAUSE)
        structlog.get_logger().warning("aesm.worker", outcome="ended", reason=reason, restart_in=self._pause)
        self._restart = self._loop.call_later(self._pause, self._start)

    def _tried(self) -> None:
        if not self.first_try.done():
            self.first_try.set_result(None)
