"""One line per request, also when nobody reads them fast enough."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from confcom.protocols.aesm_status import AesmStatus
from confcom.services.quote_helper import telemetry
from confcom.services.quote_helper.connection import RequestEvent
from confcom.services.quote_helper.telemetry import BURST, MAX_PEERS, RATE, RequestLog


def event(number: int, kind: str | None = "GetQuoteEx", **changes: object) -> RequestEvent:
    outcome = "answered" if kind is not None else "closed"
    status = AesmStatus.SUCCESS if kind is not None else None
    made = RequestEvent(kind, outcome, status, None, "", 0.00125, 42, number, 725, 4741, "pod x", 1.7e9 + 0.25)
    return made._replace(**changes)


def read(written: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(written).splitlines()]


def test_every_event_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "BURST", 2500)
    written: list[bytes] = []
    log = RequestLog(write=written.append)
    for number in range(2500):
        log.record(event(number))
    log.close()

    lines = read(written)
    assert [line["uid"] for line in lines] == list(range(2500))
    first = lines[0]
    assert first.pop("timestamp") == "2023-11-14T22:13:20.250000Z"  # when the connection ended
    assert first == {
        "event": "aesm.request", "level": "info", "kind": "GetQuoteEx", "outcome": "answered", "code": 0,
        "duration_ms": 1.25, "pid": 42, "uid": 0, "peer": "pod x", "request_size": 725, "response_size": 4741,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outcome": "refused", "status": AesmStatus.BUSY, "error": "platform-busy", "reason": "full", "peer": "uid 5"},
        {"kind": None, "outcome": "closed", "status": None, "reason": "no request within the deadline"},
        {"peer": "container 0123456789ab", "pid": 0},
    ],
)
def test_a_line_says_what_the_event_says_to_a_person(changes: dict[str, object]) -> None:
    written: list[bytes] = []
    log = RequestLog(write=written.append, verbose=True)
    told = event(3, **changes)
    log.record(told)
    log.close()

    line = read(written)[0]
    for added in ("event", "level", "timestamp"):
        del line[added]
    assert line == json.loads(json.dumps(told.fields()))


def test_writes_are_short_enough_for_a_pipe_to_take_whole() -> None:
    written: list[bytes] = []
    log = RequestLog(write=written.append)
    for number in range(300):
        log.record(event(number))
    log.close()

    assert all(piece.endswith(b"\n") and len(piece) <= 4096 for piece in written)
    assert len(written) < 40


def test_silent_visits_are_for_debugging() -> None:
    quiet: list[bytes] = []
    verbose: list[bytes] = []
    for log in (RequestLog(write=quiet.append), RequestLog(write=verbose.append, verbose=True)):
        log.record(event(1, None))
        log.close()

    assert quiet == []
    assert [line["level"] for line in read(verbose)] == ["debug"]


def test_a_reader_that_does_not_read_holds_up_nobody_and_losses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_LINES", 100)
    monkeypatch.setattr(telemetry, "BURST", 1000)
    monkeypatch.setattr(telemetry, "FLUSH_AFTER", 0.01)
    written: list[bytes] = []
    reading = threading.Event()

    def write(data: bytes) -> None:
        assert reading.wait(60)
        written.append(data)

    log = RequestLog(write=write)
    for number in range(1000):
        log.record(event(number))
    reading.set()
    log.close()

    lines = read(written)
    requests = [line for line in lines if line["event"] == "aesm.request"]
    lost = sum(int(str(line["lost"])) for line in lines if line["event"] == "aesm.log")
    assert lost > 0
    assert len(requests) + lost == 1000
    assert log.lost == lost


def test_a_log_that_is_gone_ends_nothing() -> None:
    def write(data: bytes) -> None:
        raise BrokenPipeError

    log = RequestLog(write=write)
    log.record(event(1))
    log.close()


def test_one_peers_flood_leaves_the_lines_of_others_and_is_summed_up() -> None:
    now = [0.0]
    written: list[bytes] = []
    log = RequestLog(write=written.append, monotonic=lambda: now[0])
    for number in range(BURST + 3000):
        log.record(event(number, peer="pod loud", outcome="refused" if number % 3 else "answered"))
    for number in range(10):
        log.record(event(number, peer="pod quiet"))
    now[0] += 5 / RATE
    for number in range(10):
        log.record(event(number, peer="pod loud"))
    log.close()

    lines = read(written)
    shown = [line["peer"] for line in lines if line["event"] == "aesm.request"]
    assert (shown.count("pod loud"), shown.count("pod quiet")) == (BURST + 5, 10)
    (summary,) = [line for line in lines if line["event"] == "aesm.left_out"]
    assert summary["peer"] == "pod loud"
    assert sum(summary["requests"].values()) == log.left_out == 3000 + 5
    assert set(summary["requests"]) == {"GetQuoteEx refused", "GetQuoteEx answered"}


def test_ever_new_peers_share_what_is_left_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "BURST", 2)
    written: list[bytes] = []
    log = RequestLog(write=written.append, monotonic=lambda: 0.0)
    for number in range(MAX_PEERS + 100):
        log.record(event(number, peer=f"uid {number}"))
    log.close()

    lines = [line["event"] for line in read(written)]
    assert lines.count("aesm.request") == MAX_PEERS + 2
    assert log.left_out == 98
