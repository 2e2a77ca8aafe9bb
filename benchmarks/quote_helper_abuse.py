"""Well-behaved clients while others abuse the helper in every way of the list, at a low limit of open files.

`python -m benchmarks.quote_helper_abuse --seconds 600` is the whole run. The bar is: every good request answered,
memory flat, files and processor back to where they were. Where the benchmark may (as root), the abusers are another
user, as another pod would be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.helper_load import (
    Load,
    Stage,
    children,
    machine_load,
    open_files,
    processor_seconds,
    resident,
    stop,
)
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.protocols import aesm_messages as m
from confcom.protocols.aesm import ClientConnection

FILES = 1024
GOOD_THREADS = 2
IDLE = 2000
ABUSER = 65534


def main(seconds: float = 60.0) -> None:
    print(machine_load())
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        stage = Stage(Path(name))
        helper = stage.start(files=FILES)
        try:
            asked = stage.requests()["quotes"]
            alone = stage.load(asked, GOOD_THREADS, min(5.0, seconds / 4))
            _print("good requests before", alone)
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
            during = stage.end(clients, seconds)
            stop_abuse.set()
            for abuser in abusers:
                abuser.join(10)
                abuser.kill()
            _print("good requests under abuse", during)
            _show(helper.pid, calm, states)
            _print("good requests afterwards", stage.load(asked, GOOD_THREADS, min(5.0, seconds / 4)))
        finally:
            stop(helper)


def _print(name: str, load: Load) -> None:
    everything = len(load.latencies) + load.failed
    share = len(load.latencies) / everything
    print(
        f"  {name:<28} {len(load.latencies):>9,} of {everything:,} answered ({share:.4%}), "
        f"{load.per_second:,.0f}/s, p50 {load.at(0.5) * 1e6:,.0f} µs, p99 {load.at(0.99) * 1e6:,.0f} µs, "
        f"worst {load.latencies[-1] * 1e3:,.0f} ms"
    )


State = tuple[int, int]


def _state(pid: int) -> State:
    return sum(resident(process) for process in (pid, *children(pid))), open_files(pid)


def _watch(pid: int, seconds: float) -> list[State]:
    states, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        states.append(_state(pid))
    return states


def _show(pid: int, calm: State, states: list[State]) -> None:
    early, late = states[len(states) // 10], states[-1]
    mega = 1 << 20
    print(
        f"  memory of all processes: {calm[0] / mega:.1f} MiB before, {early[0] / mega:.1f} after a tenth of the time, "
        f"{late[0] / mega:.1f} at the end, {max(state[0] for state in states) / mega:.1f} at most"
    )
    time.sleep(6)  # longer than the deadline of a silent connection
    begin, before = time.monotonic(), processor_seconds(pid)
    time.sleep(2)
    idle = (processor_seconds(pid) - before) / (time.monotonic() - begin)
    print(
        f"  open files: {calm[1]} before, {max(state[1] for state in states)} at most of {FILES}, "
        f"{open_files(pid)} afterwards; processor when idle again: {idle:.1%}"
    )


# --- the abuses -------------------------------------------------------------------------------------------------------


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
    main(parser.parse_args().seconds)
