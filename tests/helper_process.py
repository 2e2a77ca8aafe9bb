"""`confcom quote-helper` as a process of its own, and clients that never stop asking it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aesm_wire import KEY_ID, read_response, request
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.wiring import create_machine_file, declare_enclave, launch_enclave, open_platform
from running_helper import exchange

COMMAND = [sys.executable, "-c", "from confcom.cli import main; main()", "quote-helper"]


def make_machine(folder: Path) -> Path:
    path = folder / "machine.json"
    create_machine_file(path, b"helper process".ljust(32, b"."), datetime(2026, 6, 1, tzinfo=UTC))
    return path


def quote_request(machine: Path, enclave: EnclaveDeclaration | None = None) -> tuple[bytes, bytes]:
    """A frame that asks for a quote, and the quote that any process with this machine answers."""
    platform = open_platform("simulated", machine=machine)
    target = platform.init_quote().target_info
    report = launch_enclave(machine, enclave or declare_enclave("load")).create_report(target, bytes(64))
    quote = platform.quote(report).quote
    return request(17, (1, bytes(report)), (2, KEY_ID), (4, len(quote))), quote


class HelperProcess:
    """One helper; `ready` waits for the line that it prints when it serves."""

    def __init__(self, path: Path, machine: Path, *options: str, settings: str = "", **keywords: object) -> None:
        file = machine.parent / f"helper-{id(self)}.toml"
        file.write_text(settings)
        arguments = ["--socket", str(path), "--machine", str(machine), "--config", str(file), *options]
        self.path = path
        self.log_file = file.with_suffix(".log")
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, **keywords
            )  # type: ignore[call-overload]

    def ready(self) -> HelperProcess:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "ready" in line, self.log()
        return self

    def log(self) -> str:
        return self.log_file.read_text()

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        if self.process.stdout is not None:
            self.process.stdout.close()


class Load:
    """Threads that ask for the same quote again and again, each time on a new connection."""

    def __init__(self, path: Path, frame: bytes, quote: bytes) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._path, self._frame, self._quote = path, frame, quote
        self._done = threading.Event()

    def _ask_for_ever(self) -> None:
        while not self._done.is_set():
            try:
                answer = read_response(exchange(self._path, self._frame), 17)
                if answer != {1: 0, 2: self._quote}:
                    self.failures.append(f"status {answer[1]!r}")
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            self.served += 1

    def wait_for(self, more: int, within: float = 60) -> None:
        goal, deadline = self.served + more, time.monotonic() + within
        while self.served < goal and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.served >= goal


@contextmanager
def load(path: Path, frame: bytes, quote: bytes, *, threads: int = 4) -> Iterator[Load]:
    running = Load(path, frame, quote)
    clients = [threading.Thread(target=running._ask_for_ever) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield running
    finally:
        running._done.set()
        for client in clients:
            client.join(60)


def eventually(what: object, condition: object, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def get(page: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask the page at `unix:PATH` or `HOST:PORT`."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    if page.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(page.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(page, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
