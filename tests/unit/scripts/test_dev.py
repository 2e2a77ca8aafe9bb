"""How `./dev` sets up `.venv` and runs commands in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dev
import pytest


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.setattr(dev, "LOCK", tmp_path / "lock")


def test_an_interrupted_step_leaves_no_mark() -> None:
    with dev.marked("run", "1"):
        assert dev.mark("run") == ""
    assert dev.mark("run") == "1"
    with pytest.raises(SystemExit), dev.marked("run", "2"):
        dev.fail("no network")
    assert dev.mark("run") == ""


def test_a_step_that_fails_shows_its_output_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with dev.alone() as lock, pytest.raises(SystemExit):
        dev.step("trial", ["sh", "-c", "echo no such package; exit 1"], lock)
    said = capsys.readouterr().err
    assert "no such package" in said
    assert "this step failed: sh -c" in said


def test_packages_are_counted_as_pip_names_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "PROGRESS_SECONDS", -1.0)
    lines = r"Collecting a==1\nIgnoring b: markers\nRequirement already satisfied: c\nInstalling collected packages: a"
    with dev.alone() as lock:
        dev.step("packages", ["printf", lines], lock, 3)
    said = capsys.readouterr().err
    assert "packages: 3 of 3, installing" in said


def test_a_command_takes_the_place_of_dev_and_gets_its_signals() -> None:
    words = [sys.executable, "scripts/dev.py", "run", sys.executable, "-c", "import os; print(os.getpid())"]
    with subprocess.Popen(words, cwd=dev.ROOT, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=600)
    assert (process.returncode, said.split()[-1:]) == (0, [str(process.pid)])


def test_ctrl_c_leaves_tests_the_time_to_stop_what_they_started(tmp_path: Path) -> None:
    """More than the quarter of a second after which `subprocess.run` kills."""
    (tmp_path / "test_it.py").write_text(
        "import pathlib, pytest, time\n"
        "@pytest.fixture\n"
        "def server():\n"
        "    yield\n"
        "    time.sleep(2)\n"
        f"    pathlib.Path({str(tmp_path / 'stopped')!r}).touch()\n"
        "def test_it(server):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    words = ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null", str(tmp_path)]
    program = "import sys; sys.path.insert(0, 'scripts'); from pytest_child import run_pytest; "
    program += f"sys.exit(run_pytest(*{words!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=dev.ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 600
        while not (tmp_path / "begun").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=600)
    assert (tmp_path / "stopped").exists(), said
    assert process.returncode == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize(("words", "said"), [(["bogus"], "dev: there is no task 'bogus'"), ([], "dev: name a task")])
def test_an_unknown_task_is_named_after_the_list(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        dev.main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == said
