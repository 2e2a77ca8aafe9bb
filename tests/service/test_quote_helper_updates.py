"""Updates of the quote helper under load, and helpers that are killed: no client notices, or only for a moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aesm_wire import read_response, request
from confcom.services.runtime.listener import is_served
from confcom.services.runtime.process import AT_ONCE, LONGEST_PAUSE, restart_pause
from confcom.wiring import create_machine_file, export_simulated_collateral
from helper_process import HelperProcess, eventually, load, make_machine, quote_request
from running_helper import exchange

pytestmark = pytest.mark.promise("M10")

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

    def start(*options: str, settings: str = "", **keywords: object) -> HelperProcess:
        started.append(HelperProcess(path, machine, *options, settings=settings, **keywords))
        return started[-1]

    yield start
    for helper in started:
        helper.end()


@pytest.mark.complaint("gramine #1881")
def test_no_request_fails_during_five_updates(start: Start, path: Path, machine: Path) -> None:
    frame, quote = quote_request(machine)
    helper = start().ready()
    with load(path, frame, quote, threads=3) as running:
        for _ in range(5):
            successor = start("--replace").ready()
            assert helper.wait() == 0
            running.wait_for(20)
            helper = successor

    assert running.failures == []
    assert [entry.name for entry in path.parent.iterdir() if entry.is_socket()] == ["aesm.socket"]
    proof = next(json.loads(line) for line in helper.log().splitlines() if '"aesm.proof"' in line)
    assert proof["outcome"] == "proven"
    assert set(proof["checks"]) == {"attestation-key", "quote", "verification", "recorded-clients"}


@pytest.mark.parametrize("flaw", ["stale collateral", "another root"])
def test_an_update_that_fails_its_proof_changes_nothing(
    start: Start, path: Path, machine: Path, tmp_path: Path, flaw: str
) -> None:
    frame, quote = quote_request(machine)
    folder = tmp_path / "collateral"
    options = ["--collateral", str(folder)]
    if flaw == "stale collateral":
        export_simulated_collateral(machine, folder, datetime(2020, 1, 1, tzinfo=UTC))
    else:
        other = tmp_path / "other.json"
        create_machine_file(other, b"another world".ljust(32, b"."), datetime(2026, 6, 1, tzinfo=UTC))
        export_simulated_collateral(other, folder, datetime(2026, 6, 1, tzinfo=UTC))
        options += ["--trust-root", str(folder / "root_ca.pem")]
    start().ready()
    inode = path.stat().st_ino
    with load(path, frame, quote) as running:
        running.wait_for(20)
        successor = start("--replace", *options)
        assert successor.wait() == 7
        running.wait_for(20)

    assert running.failures == []
    assert path.stat().st_ino == inode
    assert "does not take" in successor.log()
    assert "verification: " in successor.log()
    assert "Traceback" not in successor.log()
    assert [entry.name for entry in path.parent.iterdir() if entry.is_socket()] == ["aesm.socket"]


def test_a_helper_that_waits_comes_back_when_its_successor_dies(start: Start, path: Path) -> None:
    """The kubelet starts again whatever ends, so in a rolling update the old one must not end by itself."""
    old = start(settings='when_replaced = "wait"').ready()
    new = start("--replace").ready()
    eventually("the old one notices", lambda: '"aesm.replaced"' in old.log())
    assert old.process.poll() is None
    assert read_response(exchange(path, request(21)), 21)[1] == 0
    new.process.kill()
    new.process.wait()

    eventually("the old one returns", lambda: '"aesm.returned"' in old.log())
    # The path of the killed one is there until then; what counts is that somebody answers.
    eventually("it serves", lambda: is_served(path))
    assert read_response(exchange(path, request(21)), 21)[1] == 0
    old.process.send_signal(signal.SIGTERM)
    assert old.wait() == 0
    assert not path.exists()


@pytest.mark.complaint("gramine #1881", "linux-sgx #1022")
def test_whoever_made_a_report_for_a_helper_that_was_killed_is_served_by_the_next(
    start: Start, path: Path, machine: Path
) -> None:
    """Gramine asks for the target once, when it starts, and for quotes ever after; the key is the machine's."""
    frame, quote = quote_request(machine)
    for _ in range(2):
        helper = start().ready()
        answer = read_response(exchange(path, frame), 17)
        assert (answer[1], answer[2]) == (0, quote)
        helper.process.kill()
        helper.process.wait()


def test_a_socket_that_somebody_removed_is_put_back(start: Start, path: Path) -> None:
    helper = start().ready()
    path.unlink()

    eventually("the socket is back", path.exists)
    assert read_response(exchange(path, request(21)), 21)[1] == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert '"restored"' in helper.log()


def test_what_killed_helpers_left_is_tidied_up(start: Start, path: Path) -> None:
    left = path.with_name(f".{path.name}.0123abcd")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    precious = path.with_name(f".{path.name}.precious")
    precious.write_text("not ours")
    start().ready()

    assert not left.exists()
    assert precious.exists()


# --- killed, under a first process that starts it again ---

RESTART = 'when_killed = "restart"\n'


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
    helper = start(settings=RESTART).ready()
    for _ in range(3):
        kill_server(helper, number)
        eventually("it serves", lambda: is_served(path), within=60)
        assert read_response(exchange(path, frame), 17) == {1: 0, 2: quote}

    assert helper.process.poll() is None
    assert helper.log().count('"process.restart"') == 3
    assert f"killed by {number.name}" in helper.log()


def test_told_to_stop_both_end_and_the_socket_is_gone(start: Start, path: Path) -> None:
    helper = start(settings=RESTART).ready()
    kill_server(helper)
    eventually("it serves", lambda: is_served(path), within=60)
    server = server_of(helper)
    helper.process.send_signal(signal.SIGTERM)

    assert helper.wait(60) == 0
    assert not path.exists()
    assert not Path(f"/proc/{server}").exists()


def test_what_ends_by_itself_is_not_started_again(start: Start, path: Path, machine: Path) -> None:
    """Its exit code is the answer to a mistake in the settings, and the supervisor's to see."""
    start(settings=RESTART).ready()
    other = HelperProcess(path, machine, settings=RESTART)

    assert other.wait(60) == 2
    assert "another service answers" in other.log()
    assert "process.restart" not in other.log()
    other.end()


def test_without_its_parent_it_leaves(start: Start, path: Path) -> None:
    helper = start(settings=RESTART).ready()
    server = server_of(helper)
    helper.process.kill()
    helper.wait(60)

    eventually("it has removed its socket", lambda: not path.exists(), within=60)
    eventually("it has left", lambda: not Path(f"/proc/{server}/cmdline").exists(), within=60)


def test_a_replaced_one_that_is_killed_leaves_the_path_to_its_successor(start: Start, path: Path) -> None:
    old = start(settings=RESTART + 'when_replaced = "wait"\nreplace = true\n').ready()
    new = start("--replace").ready()
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
