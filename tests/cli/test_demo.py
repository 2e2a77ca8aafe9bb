"""`confcom demo` as a newcomer meets it: everything shown, everything refused, nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.cli import demo_acts, demo_stage
from confcom.cli.demo_stage import open_stage
from confcom.cli.root import run
from confcom.errors import ExitCode


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An almost empty environment, whose folders are the test's."""
    for name in ("home", "temporary", "here"):
        (tmp_path / name).mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
    }


def without_network() -> list[str]:
    """A prefix that runs a command with no network but itself, where the system lets us."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []


def start(surroundings: dict[str, str], *options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "confcom", "demo", *options],
        cwd=Path(surroundings["HOME"]).parent / "here",
        env=surroundings,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def left_behind(surroundings: dict[str, str]) -> list[Path]:
    return list(Path(surroundings["TMPDIR"]).iterdir()) + list(Path(surroundings["HOME"]).rglob("*"))


@pytest.mark.promise("M8")
@pytest.mark.promise("M9")
@pytest.mark.promise("M11")
@pytest.mark.promise("M12")
def test_the_whole_system_is_shown_without_network_and_leaves_nothing(surroundings: dict[str, str]) -> None:
    process = start(surroundings, prefix=tuple(without_network()))
    out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK, out + err
    assert "\x1b" not in out  # no colour in a pipe
    assert "✗" not in out
    for shown in (
        "A: quotes out-of-proc",
        "B: quotes in-proc",
        "A: accepted its neighbour",
        "no quote was made",
        "the helper's log shows one quote for each of the two processes",
        "the helper was not asked",
        "ACCEPTED: every signature and every expectation holds",
        "INVALID: signature of the quote does not match",
        "INVALID: the quoting enclave does not vouch for the key that signed this quote",
        "REFUSED: no-debug: found debug on",
        "REFUSED: mr-signer: found",
        "REFUSED: report-data: found",
        "ends at a root that is not trusted",
        "SIMULATED",
        "Everything went as it should",
        "--keep FOLDER",
    ):
        assert shown in out
    assert left_behind(surroundings) == []


def test_what_was_kept_can_be_verified_with_the_command_that_was_printed(
    surroundings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal that knows ASCII only, into a folder with a blank in its name."""
    folder = tmp_path / "my experiments"
    process = start(surroundings | {"PYTHONIOENCODING": "ascii"}, "--keep", str(folder))
    out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK, out + err
    assert out.isascii()
    assert left_behind(surroundings) == []
    words = shlex.split(out.strip().splitlines()[-1])
    assert words[:2] == ["confcom", "verify"]
    codes = {}
    for path in sorted(folder.glob("*.bin")):
        codes[path.name] = run(["verify", str(path), *words[3:]])
    assert codes == {
        "quote.bin": ExitCode.OK,
        "forged-version.bin": ExitCode.NOT_AUTHENTIC,
        "forged-key.bin": ExitCode.NOT_AUTHENTIC,
        "debug.bin": ExitCode.REFUSED,
        "other-signer.bin": ExitCode.REFUSED,
        "recorded.bin": ExitCode.REFUSED,
    }
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_left_alone(surroundings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "diary").write_text("mine")
    process = start(surroundings, "--keep", str(tmp_path / "kept"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.USAGE
    assert "is not empty" in err
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["diary"]
    assert left_behind(surroundings) == []


@pytest.fixture
def interrupted(surroundings: dict[str, str]) -> Iterator[Callable[[str, signal.Signals], tuple[int, str, int]]]:
    """Start, wait for a line, send a signal: exit code, rest of the output, and the helper's process id."""
    started: list[subprocess.Popen[str]] = []

    def interrupt(line: str, number: signal.Signals) -> tuple[int, str, int]:
        process = start(surroundings)
        started.append(process)
        assert process.stdout is not None
        helper = 0
        for printed in process.stdout:
            found = re.search(r"pid (\d+)", printed)
            helper = int(found[1]) if found else helper
            if line in printed:
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        return process.returncode, err, helper

    yield interrupt
    for process in started:
        process.kill()
        process.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("line", ["A machine, its authority", "2. Two enclaves", "3. The same"])
def test_interrupted_anywhere_it_cleans_up(
    line: str, number: signal.Signals, interrupted, surroundings: dict[str, str]
) -> None:
    code, err, helper = interrupted(line, number)
    assert code == ExitCode.INTERRUPTED
    assert "interrupted" in err
    assert "Traceback" not in err
    assert left_behind(surroundings) == []
    assert helper == 0 or not alive(helper)


def test_killed_it_leaves_no_process_and_the_next_one_removes_its_folder(
    interrupted, surroundings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    surroundings["TMPDIR"] = tempfile.mkdtemp(prefix="t", dir="/tmp")  # a test's own has a name that is too long
    _, _, helper = interrupted("2. Two enclaves", signal.SIGKILL)
    end = time.monotonic() + 60
    while alive(helper) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(helper)
    (folder,) = Path(surroundings["TMPDIR"]).iterdir()
    monkeypatch.setattr(tempfile, "tempdir", surroundings["TMPDIR"])
    os.utime(folder, (0, 0))
    with open_stage(None) as stage:
        assert list(folder.parent.iterdir()) == [stage.run]
        os.utime(stage.run, (0, 0))
        with open_stage(None) as other:  # beside one that runs
            assert set(folder.parent.iterdir()) == {stage.run, other.run}
    folder.parent.rmdir()


def test_its_reader_may_leave_early(surroundings: dict[str, str]) -> None:
    process = start(surroundings)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert left_behind(surroundings) == []


def test_an_expectation_that_is_not_met_makes_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verifier asks for a version that the genuine quote has not: that must not be called a success."""
    monkeypatch.delenv("SGX_AESM_ADDR", raising=False)
    monkeypatch.setattr(demo_acts, "MIN_SVN", 9)
    assert run(["demo"]) == ExitCode.UNEXPECTED
    out = capsys.readouterr().out
    assert "NOT as it should be: A genuine quote (nothing was changed)" in out
    assert "min-isv-svn: found security version 2" in out


def test_a_peer_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_stage, "PEER_TIMEOUT", 0.1)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    outcome = demo_stage._finish("A", process)
    assert (outcome.code, outcome.lines) == (-9, ("A: it had not ended after 0.1 s",))
