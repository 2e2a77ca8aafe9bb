"""The quote helper's workers: killed, stopped, orphaned, under load; no client may notice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from helper_process import HelperProcess, eventually, load, make_machine, quote_request
from running_helper import exchange

pytestmark = pytest.mark.promise("M10")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return make_machine(tmp_path)


@pytest.fixture
def helper(tmp_path: Path, machine: Path) -> Iterator[HelperProcess]:
    running = HelperProcess(
        tmp_path / "aesm.socket", machine, "--workers", "2", settings="answer_timeout = 1.0"
    ).ready()
    yield running
    running.end()


@pytest.mark.complaint("linux-sgx #1022")
def test_no_request_fails_when_workers_are_killed(helper: HelperProcess, machine: Path) -> None:
    frame, quote = quote_request(machine)
    killed = set()
    with load(helper.path, frame, quote, threads=8) as running:
        running.wait_for(100)
        for _ in range(6):
            eventually("workers come back", lambda: set(helper.workers) - killed)
            victim = (set(helper.workers) - killed).pop()
            running.wait_for(30)
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            running.wait_for(30)

    assert running.failures == []
    assert len(killed) == 6
    eventually("both workers are back", lambda: len(set(helper.workers) - killed) == 2)


def test_a_worker_that_hangs_is_replaced_and_delays_nobody_for_long(helper: HelperProcess, machine: Path) -> None:
    frame, quote = quote_request(machine)
    before = set(helper.workers)
    with load(helper.path, frame, quote, threads=8) as running:
        running.wait_for(100)
        os.kill(min(before), signal.SIGSTOP)
        eventually("the hanging worker is killed", lambda: min(before) not in helper.workers)
        running.wait_for(100)

    # What it had in hand is told BUSY, because nobody may wait as long as the client's own patience.
    assert set(running.failures) <= {"status 18"}
    assert len(running.failures) <= 8


def test_workers_do_not_outlive_the_helper(helper: HelperProcess) -> None:
    workers = helper.workers
    assert len(workers) == 2
    helper.process.kill()
    helper.process.wait()

    eventually("the workers leave", lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))


def test_without_workers_everything_is_answered_all_the_same(tmp_path: Path, machine: Path) -> None:
    frame, quote = quote_request(machine)
    helper = HelperProcess(tmp_path / "aesm.socket", machine, "--workers", "0").ready()
    try:
        assert helper.workers == []
        assert read_response(exchange(helper.path, frame), 17) == {1: 0, 2: quote}
    finally:
        helper.end()


def test_refusals_and_requests_without_platform_are_the_same_under_load(helper: HelperProcess, machine: Path) -> None:
    """Whoever answers, this process or a worker: the same bytes, and one event per request."""
    frame, quote = quote_request(machine)
    forged = bytearray(frame)
    forged[200] ^= 1  # within the report's body: its MAC is wrong now
    with load(helper.path, frame, quote, threads=6) as running:
        running.wait_for(50)
        refused = {exchange(helper.path, bytes(forged)) for _ in range(60)}
        listed = {exchange(helper.path, request(22, (1, 256))) for _ in range(20)}
        too_small = {exchange(helper.path, request(17, (1, bytes(432)), (2, KEY_ID), (4, 5))) for _ in range(20)}

    assert running.failures == []
    assert [read_response(answer, 17) for answer in refused] == [{1: 47}]
    assert [read_response(answer, 22) for answer in listed] == [{1: 0, 2: KEY_ID}]
    assert [read_response(answer, 17) for answer in too_small] == [{1: 3}]
    helper.end()
    events = [line for line in helper.log().splitlines() if '"aesm.request"' in line]
    assert len(events) == running.served + 100
    assert sum('"report-rejected"' in line for line in events) == 60
    assert sum('"malformed-input"' in line for line in events) == 20


def test_stopping_answers_what_is_under_way(helper: HelperProcess, machine: Path) -> None:
    frame, quote = quote_request(machine)
    with load(helper.path, frame, quote, threads=8) as running:
        running.wait_for(100)
        started = time.monotonic()
        helper.process.send_signal(signal.SIGTERM)
        assert helper.wait() == 0

    assert time.monotonic() - started < 10
    # Until the socket was gone, everybody was answered; after that there is nobody to connect to.
    assert {failure.split("(")[0] for failure in running.failures} <= {"FileNotFoundError", "ConnectionRefusedError"}


def test_long_requests_do_not_choke_a_worker(helper: HelperProcess, machine: Path) -> None:
    """More of them than the channel to a worker holds: that is no reason to end the worker."""
    frame, quote = quote_request(machine)
    long = request(16, (1, KEY_ID + bytes(60_000)))
    workers = set(helper.workers)
    with load(helper.path, frame, quote, threads=2) as good:
        clients = [threading.Thread(target=lambda: [exchange(helper.path, long) for _ in range(8)]) for _ in range(48)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(20)

    assert good.failures == []
    assert set(helper.workers) == workers
