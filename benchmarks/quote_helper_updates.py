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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.helper_load import Stage, children, stop
from benchmarks.measure import Row, show, spread
from confcom.services.runtime.process import restart_pause

THREADS = 16
FOR_EVER = 36000.0

Helper = subprocess.Popen[str]


def rows(count: int = 100) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        helper = stage.start()
        try:
            helper, row = _under_load(stage, f"{count} updates", helper, lambda old: _updates(stage, old, count))
            yield row
            failing = max(1, count // 10)
            name = f"{failing} updates that fail their proof"
            _, row = _under_load(stage, name, helper, lambda old: _failing(stage, old, failing))
            yield row
            stop(helper)
            helper = stage.start(settings={"when_killed": "restart"})
            yield _kills(stage, helper, max(3, count // 10))
        finally:
            stop(helper)


def _under_load(stage: Stage, name: str, helper: Helper, act: Callable[[Helper], Helper]) -> tuple[Helper, Row]:
    clients = stage.begin(stage.requests()["quotes"], THREADS, FOR_EVER)
    begin = time.monotonic()
    helper = act(helper)
    elapsed = time.monotonic() - begin
    clients.send_signal(signal.SIGTERM)
    load = stage.end(clients)
    note = f"of {len(load.latencies) + load.failed:,} in {elapsed:,.0f} s, {THREADS} clients; {spread(load.latencies)}"
    return helper, Row(f"requests failed, {name}", load.failed, "", note=note)


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


def _kills(stage: Stage, helper: Helper, count: int) -> Row:
    asked, waits, pauses = stage.requests()["quotes"], [], []
    for _ in range(count):
        victim = children(helper.pid)[0]
        begin = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while not stage.is_answered(asked):
            time.sleep(0.001)
        waits.append(time.monotonic() - begin)
        pauses.append(restart_pause(len(waits)))
    worst = max(wait - pause for wait, pause in zip(waits, pauses, strict=True))
    return Row("next answer after kill -9 of the serving process, worst", worst, "s", note=f"{count} kills; bar: 2 s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    show(rows(parser.parse_args().count))
