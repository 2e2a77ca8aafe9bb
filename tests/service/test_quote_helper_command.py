"""`confcom quote-helper` as a process: what it prints, how it stops, what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from confcom.wiring import create_machine_file
from running_helper import exchange

CONFCOM = [sys.executable, "-c", "from confcom.cli import main; main()"]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    create_machine_file(path, bytes(32), datetime(2026, 11, 21, tzinfo=UTC))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesm.socket"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONFCOM, "quote-helper", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip


@contextmanager
def helper(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*CONFCOM, "quote-helper", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serves_until_a_signal_and_leaves_nothing_behind(machine: Path, path: Path, number: signal.Signals) -> None:
    arguments = ["--socket", str(path), "--platform", "simulated", "--machine", str(machine)]
    with helper(*arguments) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        answer = exchange(path, request(15, (1, KEY_ID), (3, 1), (4, 32)))
        process.send_signal(number)
        rest, log = process.communicate(timeout=60)

    assert ready == f"quote helper: ready on {path}, platform simulated (it was asked for by name)\n"
    assert rest == ""
    assert process.returncode == 0
    assert read_response(answer, 15)[1] == 0
    assert not path.exists()
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["event"] for event in events] == ["aesm.warm_up", "aesm.request"]
    assert (
        events[1].items()
        >= {
            "kind": "InitQuoteEx",
            "outcome": "answered",
            "code": 0,
            "uid": os.geteuid(),
            "pid": os.getpid(),
            "level": "info",
        }.items()
    )


def test_a_machine_file_chooses_the_simulated_platform(machine: Path, path: Path) -> None:
    with helper("--socket", str(path), "--machine", str(machine)) as process:
        assert process.stdout is not None

        assert "platform simulated (the machine file" in process.stdout.readline()


def test_a_second_helper_says_what_to_do(machine: Path, path: Path) -> None:
    arguments = ["--socket", str(path), "--machine", str(machine)]
    with helper(*arguments) as first:
        assert first.stdout is not None
        first.stdout.readline()
        refused = run(*arguments)

        assert refused.returncode == 2
        assert f"another service answers on {path}" in refused.stderr
        assert "--replace" in refused.stderr
        with helper(*arguments, "--replace") as second:
            assert second.stdout is not None
            assert "ready" in second.stdout.readline()
            first.send_signal(signal.SIGTERM)
            first.wait(60)
            assert read_response(exchange(path, request(21)), 21) == {1: 0, 2: 1}


def test_prints_the_configuration_in_force(tmp_path: Path) -> None:
    file = tmp_path / "helper.toml"
    file.write_text("backlog = 256\nread_timeout = 2.5\n")

    done = run(
        "--print-config", "--config", str(file), "--socket", "/elsewhere",
        CONFCOM_QUOTE_HELPER_BACKLOG="512", CONFCOM_QUOTE_HELPER_REPLACE="true",
    )  # fmt: skip

    assert done.returncode == 0
    config = json.loads(done.stdout)
    assert config.items() >= {"socket": "/elsewhere", "backlog": 512, "read_timeout": 2.5, "replace": True}.items()


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml"),
        ([], {"CONFCOM_QUOTE_HELPER_BACKLOG": "1"}, "CONFCOM_QUOTE_HELPER_BACKLOG: Expected `int` >= 128"),
        (["--platform", "imaginary"], {}, "imaginary"),
        (["--platform", "simulated"], {}, "machine file"),
    ],
)
def test_a_wrong_configuration_is_a_sentence_and_exit_code_2(
    path: Path, arguments: list[str], environment: dict[str, str], why: str
) -> None:
    done = run("--socket", str(path), *arguments, **environment)

    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr
