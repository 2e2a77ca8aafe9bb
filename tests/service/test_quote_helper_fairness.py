"""One pod cannot take the quote helper away from another: turns, connections, rate, idle connections.

Which process is in which pod comes from a host root of the test's own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from confcom.services.quote_helper.peers import FUTILE
from helper_process import HelperProcess, eventually, get, load, make_machine, processor_seconds, quote_request
from recording_platform import QUOTE_SIZE, RecordingPlatform
from running_helper import connect, exchange, read_all, running_helper

pytestmark = pytest.mark.promise("M10")

REPORT = bytes(range(216)) * 2
INFO = bytes(960)
QUOTE = request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE))
GREEDY = "11111111-2222-3333-4444-555555555555"
POLITE = "99999999-8888-7777-6666-555555555555"

ASK = """
import json, socket, sys, threading, time
path, frame, threads, seconds = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
sys.stdin.readline()
statuses, waits, end = {}, [], time.monotonic() + seconds
def ask():
    asked = False
    while not asked or time.monotonic() < end:
        asked = True
        begin = time.monotonic()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)  # before the time limit: with one, a full backlog is an error at once
            client.settimeout(60)
            client.sendall(frame)
            answer = b""
            while piece := client.recv(1 << 20):
                answer += piece
        waits.append(time.monotonic() - begin)
        # The response's tag and length, then field 1: the status.
        at = 4 + 2 + (1 if answer[6] < 128 else 2 if answer[7] < 128 else 3) if len(answer) > 8 else 0
        status = answer[at + 1] if at else -1
        statuses[status] = statuses.get(status, 0) + 1
clients = [threading.Thread(target=ask) for _ in range(threads)]
[client.start() for client in clients]
[client.join() for client in clients]
print(json.dumps({"statuses": statuses, "worst": max(waits), "count": len(waits)}))
"""


def belongs_to(host: Path, pid: int, pod: str) -> None:
    place = host / "proc" / str(pid)
    place.mkdir(parents=True)
    slice_ = f"kubepods-burstable-pod{pod.replace('-', '_')}.slice/cri-containerd-{'a' * 64}.scope"
    (place / "cgroup").write_text(f"0::/kubepods.slice/kubepods-burstable.slice/{slice_}\n")


class Client:
    """A process in a pod, with that many threads that ask as fast as they can."""

    def __init__(self, host: Path, path: Path, pod: str, threads: int, seconds: float, frame: bytes = QUOTE) -> None:
        command = [sys.executable, "-c", ASK, str(path), frame.hex(), str(threads), str(seconds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        belongs_to(host, self.process.pid, pod)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, object]:
        output, _ = self.process.communicate(timeout=60)
        found: dict[str, object] = json.loads(output)
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesmd" / "aesm.socket"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


def slow_platform(seconds: float) -> RecordingPlatform:
    platform = RecordingPlatform()
    platform.before = lambda what: time.sleep(seconds) if what == "quote" else None
    return platform


def test_a_greedy_pod_does_not_starve_a_polite_one(path: Path, host: Path, tmp_path: Path) -> None:
    """With sixty requests of one pod in the queue, that of another waits for a few of them."""
    gate = threading.Event()
    platform = RecordingPlatform()
    platform.before = lambda what: what == "quote" and gate.wait(60)
    page = f"unix:{tmp_path / 'page'}"

    def queued(count: int) -> None:
        """So many came. One or two of them are in hand: the second where the platform's thread has room for it."""
        eventually(f"{count} wait", lambda: sample(page, "connections") == count <= sample(page, "waiting") + 2)

    with running_helper(platform, path, host_root=str(host), http=page) as helper:
        greedy = Client(host, path, GREEDY, threads=60, seconds=0)
        polite = Client(host, path, POLITE, threads=1, seconds=0)
        greedy.go()
        queued(60)
        polite.go()
        queued(61)
        gate.set()
        assert polite.result()["statuses"] == {"0": 1}
        assert greedy.result()["statuses"] == {"0": 60}
        order = [event.peer for event in helper.wait_for_events(61) if event.kind is not None]

    # One is in hand, and their turns begin with the greedy pod; behind everybody it would be the last of 61.
    assert order.index(f"pod {POLITE}") < 10
    assert {f"pod {GREEDY}", f"pod {POLITE}"} <= set(order)


def test_a_full_queue_is_paid_for_by_who_filled_it(path: Path, host: Path) -> None:
    with running_helper(slow_platform(0.01), path, host_root=str(host), max_waiting=8):
        greedy = Client(host, path, GREEDY, threads=30, seconds=1)
        polite = Client(host, path, POLITE, threads=2, seconds=0.6)
        greedy.go()
        time.sleep(0.3)
        polite.go()
        found, other = polite.result(), greedy.result()

    assert found["statuses"] == {"0": found["count"]}
    statuses = other["statuses"]
    assert isinstance(statuses, dict)
    assert set(statuses) == {"0", "18"}


def test_connections_over_the_limit_of_a_pod_are_told_busy_in_the_right_shape(path: Path) -> None:
    with running_helper(slow_platform(0.2), path, max_connections_per_peer=3) as helper:
        under_way = [connect(path) for _ in range(3)]
        for client in under_way:
            client.sendall(QUOTE)
        with_info = request(17, (1, REPORT), (2, KEY_ID), (3, INFO), (4, QUOTE_SIZE))
        refused = [
            read_response(exchange(path, with_info), 17),
            read_response(exchange(path, request(16, (1, KEY_ID))), 16),
            read_response(exchange(path, request(15, (1, KEY_ID), (3, 1), (4, 32))), 15),
        ]
        answered = [read_response(read_all(client), 17)[1] for client in under_way]
        for client in under_way:
            client.close()
        again = read_response(exchange(path, QUOTE), 17)[1]

    assert refused == [{1: 18, 3: INFO}, {1: 18, 2: 0}, {1: 18, 3: 32}]
    assert answered == [0, 0, 0]
    assert again == 0
    busy = [event for event in helper.events if event.error == "platform-busy"]
    assert len(busy) == 3
    assert "has 3 connections already" in busy[0].reason


def test_a_pods_silent_connections_make_room_for_its_own(path: Path) -> None:
    with running_helper(RecordingPlatform(), path, max_connections_per_peer=5) as helper:
        silent = [connect(path) for _ in range(20)]
        assert read_response(exchange(path, QUOTE), 17)[1] == 0
        for client in silent:
            client.close()
        events = helper.wait_for_events(21)

    assert sum("of the same peer" in event.reason for event in events) == 16


def test_a_rate_is_kept_when_one_is_set(path: Path) -> None:
    def ask() -> int:
        return read_response(exchange(path, QUOTE), 17)[1]

    with running_helper(RecordingPlatform(), path, peer_rate=2.0, peer_burst=5) as helper:
        began, first = time.monotonic(), [ask()]
        while first[-1] == 0 and len(first) < 1_000:
            first.append(ask())
        most = 5 + 2 * (time.monotonic() - began)
        free = read_response(exchange(path, request(21)), 21)[1]
        eventually("the next quote", lambda: ask() == 0)

    assert first[-1] == 18
    assert 5 <= first.count(0) <= most
    assert free == 0
    assert any("asks more than 2 times a second" in event.reason for event in helper.events)


FLOOD = """
import socket, sys
path, part, pod_is_known = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        try:
            client.sendall(part)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed already
"""


@pytest.mark.parametrize("files", [4096, 160])
@pytest.mark.parametrize("part", [b"", QUOTE[:100]], ids=["empty", "part of a request"])
def test_a_pod_that_floods_is_named_and_closed_unread_and_others_are_answered(
    tmp_path: Path, path: Path, host: Path, part: bytes, files: int
) -> None:
    """Connections that come to nothing count against their pod, and the helper stays ready."""
    path.parent.mkdir()
    machine = make_machine(tmp_path)
    frame, quote = quote_request(machine)
    page = f"unix:{tmp_path / 'http'}"
    helper = HelperProcess(
        path, machine, "--http", page, settings=f'host_root = "{host}"',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    ).ready()  # fmt: skip
    try:
        flood = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(path), part.hex(), str(4 * FUTILE)], stdin=subprocess.PIPE, text=True
        )
        belongs_to(host, flood.pid, GREEDY)
        with load(path, frame, quote, threads=2) as running:
            assert flood.stdin is not None
            flood.stdin.write("go\n")
            flood.stdin.close()
            assert get(page, "/readyz")[0] == 200
            assert flood.wait(240) == 0
            running.wait_for(20)
            assert get(page, "/readyz")[0] == 200
        assert running.failures == []
        eventually(
            "it is in the metrics", lambda: f'throttled_connections_total{{peer="pod {GREEDY}"}}' in metrics(page)
        )
        throttled = [json.loads(line) for line in helper.log().splitlines() if '"aesm.throttled"' in line]
        assert {line["peer"] for line in throttled} == {f"pod {GREEDY}"}
    finally:
        helper.end()


def sample(page: str, name: str) -> float:
    found = next(line for line in metrics(page).splitlines() if line.startswith(f"confcom_quote_helper_{name} "))
    return float(found.split()[1])


def metrics(page: str) -> str:
    return get(page, "/metrics")[1].decode()


MANY = """
import os, socket, sys
clients = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for user, client in enumerate(clients, 100_000):
    if os.fork() == 0:
        os.setuid(user)
        client.connect(sys.argv[1])
        os._exit(0)
    os.wait()
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be many users")
def test_one_process_that_connects_as_many_users_is_one_peer(tmp_path: Path) -> None:
    """Its children have ended, and their connections stay with it."""
    machine = make_machine(tmp_path)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    frame, quote = quote_request(machine)
    page = f"unix:{tmp_path / 'http'}"
    helper = HelperProcess(tmp_path / "aesm.socket", machine, "--http", page, settings="read_timeout = 60").ready()
    many = subprocess.Popen(
        [sys.executable, "-c", MANY, str(helper.path), "900"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert many.stdout is not None
        assert many.stdout.readline() == "connected\n"
        assert [read_response(exchange(helper.path, frame), 17) for _ in range(20)] == [{1: 0, 2: quote}] * 20
        eventually("they are one peer", lambda: sample(page, "peers") <= 2)  # and this process
        eventually("with no more than a peer may have", lambda: sample(page, "connections") <= 256)
    finally:
        many.communicate(timeout=60)
        helper.end()


@contextmanager
def idle_connections(path: Path, count: int) -> Iterator[None]:
    clients = [connect(path) for _ in range(count)]
    try:
        yield
    finally:
        for client in clients:
            with suppress(OSError):
                client.close()


def test_a_thousand_idle_connections_at_a_low_file_limit_cost_nobody_anything(tmp_path: Path) -> None:
    """Intel's service never recovers from 250 of them."""
    machine = make_machine(tmp_path)
    frame, quote = quote_request(machine)
    helper = HelperProcess(
        tmp_path / "aesm.socket", machine,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)),
    ).ready()  # fmt: skip
    try:
        with load(helper.path, frame, quote, threads=2) as running:
            running.wait_for(20)
            with idle_connections(helper.path, 1000):
                running.wait_for(20)
            running.wait_for(20)
        assert running.failures == []
        before = processor_seconds(helper.process.pid)
        time.sleep(0.5)
        assert processor_seconds(helper.process.pid) - before < 0.1
    finally:
        helper.end()
