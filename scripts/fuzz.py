"""Fuzzes every parser of the project for a bounded time; the same seed gives the same inputs in the same order.

Each target starts from valid encodings (simulated, and real ones where the test vectors are at hand) and mutates them.
An input that leads to an outcome not seen before joins the pool. Findings are: an exception outside the error
family, a broken promise of the target (it asserts some), a call of more than two seconds, and memory that grows.
A finding is printed as hex, saved under build/fuzz, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.mutations import mutate
from fuzzing.targets import TARGETS, Target

from confcom.errors import ConfcomError

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = ROOT / "build" / "fuzz"

MAX_SECONDS = 2.0
"""A call that takes longer is a finding."""
HANG_SECONDS = 20
"""A call is interrupted after that."""
MAX_GROWTH = 96 * 1024
"""KiB by which the peak of memory may grow over that of the valid inputs."""
MAX_POOL = 400


class Hang(BaseException):
    """Raised into a call that does not end."""


@dataclass(slots=True)
class Finding:
    """An input that does what none should."""

    target: str
    data: bytes
    what: str

    def save(self) -> Path:
        """Write the input under build/fuzz, named by its hash."""
        FINDINGS.mkdir(parents=True, exist_ok=True)
        path = FINDINGS / f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:16]}.bin"
        path.write_bytes(self.data)
        return path


@dataclass(slots=True)
class Run:
    """What became of one target."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    outcomes: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0.0
        state = f"{len(self.findings)} FINDINGS" if self.findings else "ok"
        return f"{self.target:22} {self.executions:9} executions {rate:9.0f}/s {len(self.outcomes):5} outcomes  {state}"


def outcome_of(error: BaseException | None) -> str:
    """The key of an outcome: the error and its place, without the numbers in them."""
    if error is None:
        return "accepted"
    place = f"{getattr(error, 'structure', '')}.{getattr(error, 'field', '')}{getattr(error, 'step', '')}"
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", f"{type(error).__name__} {place} {str(error)[:60]}")


def execute(target: Target, data: bytes) -> tuple[str, str]:
    """The outcome of one call, and what is wrong with it (nothing, for most)."""
    begin = time.perf_counter()
    error: BaseException | None = None
    try:
        target.call(data)
    except ConfcomError as expected:
        error = expected
        # What an error is shown with.
        _ = str(expected), expected.advice(), expected.as_dict()
    except KeyboardInterrupt:
        raise
    except BaseException as unexpected:  # noqa: BLE001 - panics of native code are no Exceptions
        return outcome_of(unexpected), "".join(traceback.format_exception(unexpected))
    taken = time.perf_counter() - begin
    return outcome_of(error), f"took {taken:.1f} s" if taken > MAX_SECONDS else ""


def peak_memory() -> int:
    """The largest resident size so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz(target: Target, *, seed: int, seconds: float, executions: int | None = None) -> Run:
    """Run one target until its time or its number of executions is used up, or something is found."""
    rng = random.Random(f"{seed} {target.name}")
    run = Run(target.name)
    pool = list(target.seeds())
    inputs = iter(pool[:])
    begin = time.perf_counter()
    baseline = 0
    while not run.findings and run.executions != executions:
        run.seconds = time.perf_counter() - begin
        if run.seconds > seconds and run.executions >= len(pool):
            break
        valid = next(inputs, None)
        data = mutate(rng, pool, target.nature) if valid is None else valid
        outcome, wrong = execute(target, data)
        run.executions += 1
        if valid is not None:
            baseline = peak_memory()
        elif peak_memory() > baseline + MAX_GROWTH:
            wrong = wrong or f"memory grew by {(peak_memory() - baseline) // 1024} MiB over the valid inputs"
        if wrong:
            run.findings.append(Finding(target.name, data, wrong))
        if outcome not in run.outcomes:
            run.outcomes.add(outcome)
            if valid is None and len(pool) < MAX_POOL:
                pool.append(data)
    run.seconds = time.perf_counter() - begin
    return run


@contextmanager
def watchdog() -> Iterator[None]:
    """Interrupts a call of a guarded target that does not end."""

    def bark(number: int, frame: object) -> None:
        del number, frame
        raise Hang(f"still running after {HANG_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, bark)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def guarded(target: Target) -> Target:
    """The target, with the alarm reset before each call."""

    def call(data: bytes) -> object:
        signal.alarm(HANG_SECONDS)
        return target.call(data)

    return Target(target.name, target.nature, target.seeds, call)


def report(finding: Finding) -> None:
    path = finding.save()
    print(f"\n{finding.target}: {finding.what.rstrip()}")
    print(f"input ({len(finding.data)} bytes): {finding.data.hex()}")
    print(f"saved: {path}\nagain: ./dev fuzz --target {finding.target} --reproduce {path}\n", flush=True)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description="Bounded fuzzing of every parser.")
    parser.add_argument("--seconds", type=float, default=5.0, help="per target (default 5)")
    parser.add_argument("--executions", type=int, help="per target, however long they take, instead of --seconds")
    parser.add_argument("--seed", type=int, default=1, help="another one gives other inputs (default 1)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one; repeatable")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run the one --target on this input")
    given = parser.parse_args(arguments)
    if given.reproduce and len(given.target or ()) != 1:
        parser.error("--reproduce needs one --target")
    return given


def main(arguments: list[str]) -> int:
    given = parse_arguments(arguments)
    # A library user may turn warnings into errors; then they are exceptions like any other.
    warnings.simplefilter("error")
    if given.reproduce:
        outcome, wrong = execute(TARGETS[given.target[0]], given.reproduce.read_bytes())
        print(wrong or outcome)
        return 1 if wrong else 0
    found = False
    with watchdog():
        for name in given.target or TARGETS:
            seconds = math.inf if given.executions else given.seconds
            run = fuzz(guarded(TARGETS[name]), seed=given.seed, seconds=seconds, executions=given.executions)
            print(run, flush=True)
            for finding in run.findings:
                found = True
                report(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
