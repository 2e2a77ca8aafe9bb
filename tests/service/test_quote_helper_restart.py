"""A helper in a container is killed: its first process starts it again at once, and nothing else changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aesm_wire import read_response
from confcom.services.runtime import AT_ONCE, LONGEST_PAUSE, restart_pause
from confcom.services.unix_listener import is_served
from helper_process import HelperProcess, eventually, make_machine, quote_request
from running_helper import exchange

pytestmark = pytest.mark.promise("M10")

RESTART = 'when_killed = "restart"\n'
Start = Callable[..., HelperProcess]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return make_machine(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesm.socket"


@pytest.fixture
def start(path: Path, machine: Path) -> Iterator[Start]:
    started: list[HelperProcess] = []

    def start(*options: str, settings: str = RESTART) -> HelperProcess:
        started.append(HelperProcess(path, machine, *options, settings=settings).ready())
        return started[-1]

    yield start
    for helper in started:
        helper.end()


def server_of(helper: HelperProcess) -> int | None:
    """The process that serves."""
    pid = helper.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def kill_server(helper: HelperProcess, number: signal.Signals = signal.SIGKILL) -> None:
    victim = server_of(helper)
    assert victim is not None
    os.kill(victim, number)
    eventually("another has taken its place", lambda: server_of(helper) not in (None, victim), within=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_three_times_it_serves_again(start: Start, path: Path, machine: Path, number: signal.Signals) -> None:
    frame, quote = quote_request(machine)
    helper = start()
    for _ in range(3):
        kill_server(helper, number)
        eventually("it serves", lambda: is_served(path), within=60)
        assert read_response(exchange(path, frame), 17) == {1: 0, 2: quote}

    assert helper.process.poll() is None
    assert helper.log().count('"process.restart"') == 3
    assert f"killed by {number.name}" in helper.log()


def test_told_to_stop_both_end_and_the_socket_is_gone(start: Start, path: Path) -> None:
    helper = start()
    kill_server(helper)
    eventually("it serves", lambda: is_served(path), within=60)
    server = server_of(helper)
    helper.process.send_signal(signal.SIGTERM)

    assert helper.wait(60) == 0
    assert not path.exists()
    assert not Path(f"/proc/{server}").exists()


def test_what_ends_by_itself_is_not_started_again(start: Start, path: Path, machine: Path) -> None:
    """Its exit code is the answer to a mistake in the settings, and the supervisor's to see."""
    start()
    other = HelperProcess(path, machine, settings=RESTART)

    assert other.wait(60) == 2
    assert "another service answers" in other.log()
    assert "process.restart" not in other.log()
    other.end()


def test_without_its_parent_it_leaves(start: Start, path: Path) -> None:
    helper = start()
    server = server_of(helper)
    helper.process.kill()
    helper.wait(60)

    eventually("it has removed its socket", lambda: not path.exists(), within=60)
    eventually("it has left", lambda: not Path(f"/proc/{server}/cmdline").exists(), within=60)


def test_a_replaced_one_that_is_killed_leaves_the_path_to_its_successor(start: Start, path: Path) -> None:
    old = start(settings=RESTART + 'when_replaced = "wait"\nreplace = true\n')
    new = start("--replace")
    eventually("the old one notices", lambda: '"aesm.replaced"' in old.log(), within=60)
    inode = path.stat().st_ino
    kill_server(old)
    eventually("the old one is back", lambda: old.log().count('"aesm.warm_up"') == 2, within=60)
    assert path.stat().st_ino == inode
    new.process.send_signal(signal.SIGTERM)
    assert new.wait(60) == 0

    eventually("the old one returns", lambda: '"aesm.returned"' in old.log(), within=60)
    eventually("it serves", lambda: is_served(path), within=60)


def test_pauses_grow_only_when_it_dies_again_and_again() -> None:
    assert [restart_pause(deaths) for deaths in range(1, AT_ONCE + 5)] == [0.0] * AT_ONCE + [1.0, 2.0, 4.0, 8.0]
    assert restart_pause(10_000) == LONGEST_PAUSE
