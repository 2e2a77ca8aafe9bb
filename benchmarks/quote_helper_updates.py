"""Updates of the helper, updates that fail their proof, and `kill -9` of what serves under its own first process.

For updates the bar is 0 failed requests; after a kill it is an answer within 2 seconds. A hundred updates, ten failed
proofs and ten kills take about three minutes; `--count` changes that.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.helper_load import Stage, children, machine_load, stop
from confcom.services.runtime.process import restart_pause

THREADS = 16
FOR_EVER = 36000.0

Helper = subprocess.Popen[str]


def main(count: int = 100) -> None:
    print(machine_load())
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        helper = stage.start()
        try:
            helper = _under_load(stage, f"{count} updates", helper, lambda old: _updates(stage, old, count))
            failing = max(1, count // 10)
            name = f"{failing} updates that fail their proof"
            _under_load(stage, name, helper, lambda old: _failing(stage, old, failing))
            stop(helper)
            helper = stage.start(settings={"when_killed": "restart"})
            _kills(stage, helper, max(3, count // 10))
        finally:
            stop(helper)


def _under_load(stage: Stage, name: str, helper: Helper, act: Callable[[Helper], Helper]) -> Helper:
    clients = stage.begin(stage.requests()["quotes"], THREADS, FOR_EVER)
    begin = time.monotonic()
    helper = act(helper)
    elapsed = time.monotonic() - begin
    clients.send_signal(signal.SIGTERM)
    load = stage.end(clients, elapsed)
    print(
        f"  {name:<36} {load.failed} of {len(load.latencies) + load.failed:,} requests failed in {elapsed:,.0f} s; "
        f"p50 {load.at(0.5) * 1e6:,.0f} µs, p99 {load.at(0.99) * 1e6:,.0f} µs, worst {load.latencies[-1] * 1e3:,.0f} ms"
    )
    return helper


def _updates(stage: Stage, helper: Helper, count: int) -> Helper:
    for _ in range(count):
        successor = stage.start("--replace")
        assert helper.wait(30) == 0, "the old helper did not leave as it should"
        helper = successor
    return helper


def _failing(stage: Stage, helper: Helper, count: int) -> Helper:
    folder = stage.folder / "stale"
    stage.world.export_collateral(folder, now=datetime(2020, 1, 1, tzinfo=UTC))
    command = [*map(str, helper.args), "--replace", "--collateral", str(folder)]  # type: ignore[arg-type]
    for _ in range(count):
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert done.returncode == 7, "a helper without present collateral took over"
    return helper


def _kills(stage: Stage, helper: Helper, count: int) -> None:
    asked, waits, pauses = stage.requests()["quotes"], [], []
    for _ in range(count):
        victim = children(helper.pid)[0]
        begin = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while not stage.is_answered(asked):
            time.sleep(0.001)
        waits.append(time.monotonic() - begin)
        pauses.append(restart_pause(len(waits)))
    shown = ", ".join(f"{wait - pause:.2f}" for wait, pause in zip(waits, pauses, strict=True))
    print(f"  {count} kills of the serving process      seconds to the next answer (without the pause): {shown}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    main(parser.parse_args().count)
