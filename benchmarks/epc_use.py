"""What one look at the use of EPC costs: with 200 and with 2000 processes, beside a plain walk over /proc.

The processes are real; ten of them hold 10 MiB of simulated enclave memory each. The plain walk reads every process's
maps and looks at every line, which is what the look would be without its short cuts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Row, show
from confcom.devices.host import Host
from confcom.devices.processes import (
    EnclaveDevice,
    ProcessFinder,
    bears_a_device_name,
    count_use,
    parse_mapping,
)
from confcom.devices.sgx_node import declare_node

SIZES = (200, 2000)
HOLDERS = 10
HELD = 10 << 20
"""Bytes, in one mapping each, as a real enclave has a few."""
ROUNDS = 7
INTERVAL = 10.0
"""Seconds between two looks by default."""


@contextmanager
def _processes(count: int, device: Path) -> Iterator[None]:
    """`count` processes that sleep, some of them with enclave memory."""
    hold = [sys.executable, "-m", "confcom", "simulate", "hold", "--device", str(device), "--epc", f"{HELD}"]
    holders = [subprocess.Popen(hold, stdout=subprocess.PIPE) for _ in range(HOLDERS)]
    sleepers = [os.posix_spawnp("sleep", ["sleep", "600"], os.environ) for _ in range(count - HOLDERS)]
    try:
        for holder in holders:
            assert holder.stdout is not None
            holder.stdout.readline()
        yield
    finally:
        for pid in sleepers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for holder in holders:
            holder.kill()
            holder.communicate()


def _plain_walk() -> int:
    found = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            lines = (folder / "maps").read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            mapping = parse_mapping(line)
            if mapping is not None and bears_a_device_name(mapping.path):
                found += mapping.end - mapping.start
    return found


def _cost(call: Callable[[], object]) -> tuple[float, float]:
    """Median seconds by the clock, and of processor time."""
    call()
    clock, processor = [], []
    for _ in range(ROUNDS):
        started, used = time.perf_counter(), time.process_time()
        call()
        clock.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return sorted(clock)[ROUNDS // 2], sorted(processor)[ROUNDS // 2]


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="confcom-bench-") as name:
        device = EnclaveDevice.of(declare_node(Path(name), (1 << 30,), bytes(HELD)))
        host = Host()
        for count in SIZES:
            with _processes(count, Path(name) / "dev/sgx_enclave"):
                seen = ProcessFinder(host).look(device)
                mapped = sum(use.mapped for use in count_use(seen.enclaves).values())
                look, used = _cost(lambda: count_use(ProcessFinder(host).look(device).enclaves))
                walk, _ = _cost(_plain_walk)
                assert mapped == HOLDERS * HELD, mapped
                note = f"{used / INTERVAL:.2%} of a core, every {INTERVAL:g} s; {mapped >> 20} MiB mapped"
                yield Row(f"one look at {seen.processes} processes", look * 1e3, "ms", walk * 1e3, "plain walk", note)


if __name__ == "__main__":
    show(rows())
