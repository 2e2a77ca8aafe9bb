"""Updates of the helper, updates that fail their proof, and killed workers, all under load: failed requests.

The bar is 0. A hundred of each (and ten failed proofs) take about four minutes; `--count` changes that.
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

THREADS = 16
"""Enough for workers to have requests in hand when they are killed."""
FOR_EVER = 36000.0

Helper = subprocess.Popen[str]


def main(count: int = 100, *, only_kills: bool = False) -> None:
    print(machine_load())
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        helper = stage.start()
        try:
            if not only_kills:
                helper = _under_load(stage, f"{count} updates", helper, lambda old: _updates(stage, old, count))
                failing = max(1, count // 10)
                name = f"{failing} updates that fail their proof"
                _under_load(stage, name, helper, lambda old: _failing(stage, old, failing))
            _under_load(stage, f"{count} killed workers", helper, lambda old: _kills(old, count))
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


def _kills(helper: Helper, count: int) -> Helper:
    killed: set[int] = set()
    while len(killed) < count:
        workers = {pid for pid in set(children(helper.pid)) - killed if _has_begun(pid)}
        if not workers:
            time.sleep(0.01)
            continue
        time.sleep(0.5)  # for it to open its platform and be given requests
        victim = workers.pop()
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    return helper


def _has_begun(pid: int) -> bool:
    """Whether a worker is past its start-up, which takes long on a busy machine: it ignores SIGTERM by then."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) & 1 << (signal.SIGTERM - 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only-kills", action="store_true")
    arguments = parser.parse_args()
    main(arguments.count, only_kills=arguments.only_kills)
