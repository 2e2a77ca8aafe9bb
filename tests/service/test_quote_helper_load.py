"""The quote helper under load: refusals, requests that need no platform, and its end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from helper_process import HelperProcess, load, make_machine, quote_request
from running_helper import exchange

pytestmark = pytest.mark.promise("M10")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return make_machine(tmp_path)


@pytest.fixture
def helper(tmp_path: Path, machine: Path) -> Iterator[HelperProcess]:
    running = HelperProcess(tmp_path / "aesm.socket", machine).ready()
    yield running
    running.end()


def test_refusals_and_requests_without_platform_are_the_same_under_load(helper: HelperProcess, machine: Path) -> None:
    """The same bytes as without load, and one event per request."""
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
    assert logged(helper) == running.served + 100


def logged(helper: HelperProcess) -> int:
    """Requests that the log tells of, each in a line or together."""
    lines = [json.loads(line) for line in helper.log().splitlines()]
    left_out = sum(sum(line["requests"].values()) for line in lines if line["event"] == "aesm.left_out")
    return left_out + sum(line["event"] == "aesm.request" for line in lines)


def test_stopping_answers_what_is_under_way(helper: HelperProcess, machine: Path) -> None:
    frame, quote = quote_request(machine)
    with load(helper.path, frame, quote, threads=8) as running:
        running.wait_for(100)
        helper.process.send_signal(signal.SIGTERM)
        assert helper.wait() == 0

    # Until the socket was gone, everybody was answered; after that there is nobody to connect to.
    assert {failure.split("(")[0] for failure in running.failures} <= {"FileNotFoundError", "ConnectionRefusedError"}
