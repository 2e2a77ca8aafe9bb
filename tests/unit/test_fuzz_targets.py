"""Every target of the fuzzer for a moment, and the fuzzer itself: what it must find, it finds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from confcom.errors import ConfcomError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import fuzz
from fuzzing.targets import TARGETS, Target

EXECUTIONS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_of_each_target_finds_nothing(name: str) -> None:
    seeds = TARGETS[name].seeds()
    run = fuzz.fuzz(TARGETS[name], seed=7, seconds=60, executions=len(seeds) + EXECUTIONS)
    assert [finding.what for finding in run.findings] == []
    assert run.executions == len(seeds) + EXECUTIONS
    assert len(run.outcomes) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_accepts_at_least_one_of_its_seeds(name: str) -> None:
    outcomes = [fuzz.execute(TARGETS[name], seed) for seed in TARGETS[name].seeds()]
    assert ("accepted", "") in outcomes
    assert {wrong for _, wrong in outcomes} == {""}


def recorded(seen: list[bytes], *, nature: str = "binary") -> Target:
    return Target("recorded", nature, lambda: [b'{"key": [1, 2]}', b"other"], seen.append)  # type: ignore[arg-type]


@pytest.mark.parametrize("nature", ["binary", "json", "pem"])
def test_a_seed_decides_every_input(nature: str) -> None:
    runs: list[list[bytes]] = []
    for seed in (1, 1, 2):
        seen: list[bytes] = []
        fuzz.fuzz(recorded(seen, nature=nature), seed=seed, seconds=60, executions=300)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len(set(runs[0])) > 150


def test_an_input_with_a_new_outcome_is_mutated_further() -> None:
    def ladder(data: bytes) -> None:
        steps = next((index for index, byte in enumerate(b"qce") if data[index : index + 1] != bytes([byte])), 3)
        # Each byte is one bit away: three flips at once are out of reach, one after the other they are not.
        assert steps < 3, "the top"
        raise ConfcomError("x" * steps)

    run = fuzz.fuzz(Target("ladder", "binary", lambda: [b"aaa"], ladder), seed=3, seconds=60, executions=200_000)
    assert "the top" in run.findings[0].what


def broken(data: bytes) -> None:
    if len(data) < 5:
        raise ZeroDivisionError("planted")


def test_a_foreign_exception_is_printed_saved_and_makes_the_exit_code(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setitem(TARGETS, "broken", Target("broken", "binary", lambda: [b"valid input"], broken))
    monkeypatch.setattr(fuzz, "FINDINGS", tmp_path / "build" / "fuzz")
    assert fuzz.main(["--target", "broken", "--seconds", "20"]) == 1
    out = capsys.readouterr().out
    (saved,) = (tmp_path / "build" / "fuzz").iterdir()
    assert "ZeroDivisionError: planted" in out
    assert f"input ({len(saved.read_bytes())} bytes): {saved.read_bytes().hex()}" in out
    assert fuzz.main(["--target", "broken", "--reproduce", str(saved)]) == 1
    saved.write_bytes(b"long enough")
    assert fuzz.main(["--target", "broken", "--reproduce", str(saved)]) == 0


def test_a_quiet_run_says_how_much_it_did(capsys) -> None:
    assert fuzz.main(["--target", "report", "--target", "key-id-list", "--seconds", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["report", "key-id-list"]
    assert all("executions" in line and "/s" in line for line in lines)


def test_a_slow_call_is_a_finding(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.005)
    slow = Target("slow", "binary", lambda: [b"x"], lambda _: time.sleep(0.01))
    assert "took" in fuzz.fuzz(slow, seed=1, seconds=60, executions=3).findings[0].what


def test_growing_memory_is_a_finding(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_GROWTH", -1)
    run = fuzz.fuzz(Target("idle", "binary", lambda: [b"x"], len), seed=1, seconds=60, executions=3)
    assert "memory grew" in run.findings[0].what


def test_a_call_that_does_not_end_is_interrupted(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 1)
    endless = Target("endless", "binary", lambda: [b"x"], lambda _: time.sleep(30))
    with fuzz.watchdog():
        run = fuzz.fuzz(fuzz.guarded(endless), seed=1, seconds=60, executions=1)
    assert "still running" in run.findings[0].what
