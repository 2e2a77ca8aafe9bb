"""Well-behaved clients while others abuse the helper.

First every way of abuse alone, in processes of their own and of another user, beside a plain C service that meets the
same (`--each SECONDS`, 3 by default, `--way NAME` for one): answers per second that two good clients keep with either.
The bar is half of what the plain one keeps, and 200. All processes of one way have one share of the processor, as a pod
has, where the kernel shares it by session.

Then all at once at a low limit of open files (`--seconds`, 600 is the whole run). The bar is: every good request
answered, memory flat, files and processor back to where they were.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.helper_load import (
    Asked,
    Load,
    Stage,
    children,
    open_files,
    processor_seconds,
    resident,
    stop,
)
from benchmarks.measure import Row, show, spread
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.protocols import aesm as m
from confcom.protocols.aesm import ClientConnection

FILES = 1024
GOOD_THREADS = 2
IDLE = 2000
ABUSER = 65534


@dataclass(frozen=True, slots=True)
class Way:
    """One way of abuse: so many processes of the C program's way, of one user (0: root)."""

    name: str
    processes: int
    text: str
    user: int = ABUSER


WAYS = (
    Way("partial", 1, "100 of 705 bytes, shutdown, close, in a loop"),
    Way("partial", 3, "the same, three processes"),
    Way("hold", 3, "2,000 connections with 100 bytes each, kept, three processes"),
    Way("idle", 1, "10,000 idle connections"),
    Way("storm", 8, "200 non-blocking connections, closed, again, eight processes"),
    Way("crowd", 8, "200 non-blocking connections with whole requests, eight processes"),
    Way("crowd-of-quotes", 8, "the same with requests for quotes, eight processes"),
    Way("empty", 4, "connect and close, four processes"),
    Way("half-closed", 2, "whole request, shutdown, two processes"),
    Way("leaves", 2, "whole request, no wait for the answer, two processes"),
    Way("huge", 2, "a length of 2 GiB, two processes"),
    Way("invalid", 2, "whole frames that hold no request, two processes"),
    Way("refused", 4, "whole requests with a forged report, four processes"),
    Way("cheap", 4, "whole requests that need no platform, four processes"),
    Way("files", 2, "a hundred descriptors passed along, two processes"),
    Way("forked", 2, "every connection from another process, two processes"),
    Way("drip", 2, "200 connections, a byte a second each, two processes"),
    Way("drip-fast", 2, "200 connections, byte by byte as fast as it goes, two processes"),
    Way("never-reads", 2, "200 requests, answers not read, two processes"),
    Way("slow-reader", 8, "answers read byte by byte, eight processes"),
    Way("many-users", 1, "900 connections of children of ever other users", 0),
)
PLENTY = 20000
"""Open files for the comparison, so that the plain service does not end by that limit."""


def rows(seconds: float = 60.0, each: float = 3.0, way: str = "") -> Iterator[Row]:
    if each:
        yield from _each(each, [one for one in WAYS if way == "" or one.name in way.split(",")])
    if seconds and not way:
        yield from _all_at_once(seconds)


def _each(seconds: float, ways: list[Way]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        stage = Stage(Path(name))
        asked = stage.requests()["quotes"]
        abuser, reference = (stage.build(program) for program in ("aesm_abuse", "aesm_reference"))
        work = int(stage.quote_seconds() * 1e9)
        for one in [None, *ways]:
            plain = subprocess.Popen(
                ["prlimit", f"--nofile={PLENTY}:{PLENTY}", reference, stage.path, str(asked.least + 14), str(work)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert plain.stdout is not None
            assert "ready" in plain.stdout.readline()
            kept = _kept(stage, asked, abuser, one, seconds)
            plain.kill()
            plain.wait()
            stage.path.unlink()
            helper = stage.start(files=PLENTY)
            load = _kept(stage, asked, abuser, one, seconds)
            stop(helper)
            bar = max(200.0, kept.per_second / 2)
            note = "no abuse" if one is None else f"{one.text}"
            note += "" if load.per_second >= bar else "; BELOW THE BAR"
            note += f"; {load.failed} failed" if load.failed else ""
            name = "alone" if one is None else f"{one.name} x{one.processes}"
            yield Row(
                f"{GOOD_THREADS} good clients, {name}", load.per_second, "/s", kept.per_second, "plain C service", note
            )


def _kept(stage: Stage, asked: Asked, program: Path, way: Way | None, seconds: float) -> Load:
    frame = stage.folder / "frame"
    frame.write_bytes(asked.frame)
    abuser = None
    if way is not None:
        abuser = subprocess.Popen([program, stage.path, frame, way.name, str(way.user), str(way.processes)])
    time.sleep(0.5)
    clients = stage.begin(asked, GOOD_THREADS, seconds)
    time.sleep(seconds)
    # Without its abusers even a service that they hold up lets the clients go.
    if abuser is not None:
        assert abuser.poll() is None, f"{way} ended"
        os.killpg(abuser.pid, signal.SIGKILL)
        abuser.wait()
    clients.send_signal(signal.SIGTERM)
    return stage.end(clients)


def _all_at_once(seconds: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        stage = Stage(Path(name))
        helper = stage.start(files=FILES)
        try:
            asked = stage.requests()["quotes"]
            alone = stage.load(asked, GOOD_THREADS, min(5.0, seconds / 4))
            yield _row("good requests before", alone)
            calm = _state(helper.pid)
            stop_abuse = multiprocessing.Event()
            context = multiprocessing.get_context("fork")
            abusers = [
                context.Process(target=_abuse, args=(abuse, str(stage.path), asked.frame, stop_abuse))
                for abuse in ABUSES
            ]
            for abuser in abusers:
                abuser.start()
            clients = stage.begin(asked, GOOD_THREADS, seconds)
            states = _watch(helper.pid, seconds)
            during = stage.end(clients)
            stop_abuse.set()
            for abuser in abusers:
                abuser.join(10)
                abuser.kill()
            yield _row("good requests under abuse", during)
            yield from _costs(helper.pid, calm, states)
            yield _row("good requests afterwards", stage.load(asked, GOOD_THREADS, min(5.0, seconds / 4)))
        finally:
            stop(helper)


def _row(name: str, load: Load) -> Row:
    everything = len(load.latencies) + load.failed
    note = f"{len(load.latencies):,} of {everything:,} answered; {spread(load.latencies)}"
    return Row(name, load.per_second, note=note)


State = tuple[int, int]


def _state(pid: int) -> State:
    return sum(resident(process) for process in (pid, *children(pid))), open_files(pid)


def _watch(pid: int, seconds: float) -> list[State]:
    states, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        states.append(_state(pid))
    return states


def _costs(pid: int, calm: State, states: list[State]) -> Iterator[Row]:
    early, late = states[len(states) // 10], states[-1]
    mega = 1 << 20
    most = max(state[0] for state in states) / mega
    note = f"{early[0] / mega:.1f} after a tenth of the time, {late[0] / mega:.1f} at the end"
    yield Row("memory of all processes, most", most, "MiB", calm[0] / mega, "before", note)
    time.sleep(6)  # longer than the deadline of a silent connection
    begin, before = time.monotonic(), processor_seconds(pid)
    time.sleep(2)
    idle = (processor_seconds(pid) - before) / (time.monotonic() - begin)
    note = f"at most {max(state[1] for state in states)} of {FILES}; processor when idle again {idle:.1%}"
    yield Row("open files afterwards", open_files(pid), "", calm[1], "before", note)


# The abuses, each in a process of its own.


def _abuse(abuse: Callable[[str, bytes], None], path: str, frame: bytes, stopped: object) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(ABUSER)
        os.setuid(ABUSER)
    while not stopped.is_set():  # type: ignore[attr-defined]
        with suppress(OSError):
            abuse(path, frame)


def _connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(2)
    client.connect(path)
    return client


def _slow_senders(path: str, frame: bytes) -> None:
    clients = [_connect(path) for _ in range(50)]
    for byte in frame[:30]:
        for client in clients:
            with suppress(OSError):
                client.sendall(bytes([byte]))
        time.sleep(0.3)


def _half_frames(path: str, frame: bytes) -> None:
    clients = [_connect(path) for _ in range(100)]
    for client in clients:
        client.sendall(frame[: random.randrange(1, len(frame))])
    time.sleep(1)


def _idle(path: str, _: bytes) -> None:
    clients: list[socket.socket] = []
    with suppress(OSError):
        clients.extend(_connect(path) for _ in range(IDLE))
    time.sleep(3)
    for client in clients:
        client.close()


def _huge_lengths(path: str, _: bytes) -> None:
    for length in (b"\xff\xff\xff\xff", b"\0\0\0\x40", b"\1\0\1\0"):
        with _connect(path) as client:
            client.sendall(length + bytes(1000))
            client.recv(1)
    time.sleep(0.005)


def _chosen_buffers(path: str, _: bytes) -> None:
    report = bytes(432)
    request = m.GetQuoteExRequest(report=report, att_key_id=bytes(ECDSA_P256_KEY_ID), buf_size=0xFFFFFFFF)
    with _connect(path) as client:
        client.sendall(ClientConnection().send(request))
        client.recv(1)
    time.sleep(0.005)


def _garbage(path: str, _: bytes) -> None:
    noise = random.randbytes(random.randrange(1, 3000))
    with _connect(path) as client:
        client.sendall(len(noise).to_bytes(4, "little") + noise if random.random() < 0.5 else noise)
        client.shutdown(socket.SHUT_WR)
        client.recv(1)
    time.sleep(0.005)


def _pipelining(path: str, frame: bytes) -> None:
    with _connect(path) as client:
        client.sendall(frame * 20)
        while client.recv(1 << 16):
            pass
    time.sleep(0.01)


def _disconnects(path: str, frame: bytes) -> None:
    for size in range(0, len(frame) + 1, 7):
        with _connect(path) as client:
            client.sendall(frame[:size])
    time.sleep(0.2)


def _lazy_readers(path: str, frame: bytes) -> None:
    clients = [_connect(path) for _ in range(50)]
    for client in clients:
        client.sendall(frame)
    time.sleep(1)


ABUSES: tuple[Callable[[str, bytes], None], ...] = (
    _slow_senders, _half_frames, _idle, _huge_lengths, _chosen_buffers, _garbage, _pipelining, _disconnects,
    _lazy_readers,
)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--each", type=float, default=3.0)
    parser.add_argument("--way", default="")
    arguments = parser.parse_args()
    show(rows(arguments.seconds, arguments.each, arguments.way))
