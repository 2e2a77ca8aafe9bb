"""`python -m benchmarks.store_crash`: kill -9 a writer of the collateral store a hundred times.

A child process writes versions and prints one line for each write that the store acknowledged; the parent kills it at
a random moment, opens the store, and compares. Acknowledged versions must be there with their exact bytes (lost, torn),
the file must pass SQLite's own check, and every version found must verify.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.measure import Row, show, spread
from confcom.collateral.documents import DocumentKey, take_apart, verify_document
from confcom.collateral.store.store import CollateralStore
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SEED = b"seed of the crash benchmark"
KINDS = 4


def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW)


def write(path: Path, first: int) -> None:
    """The child: version after version, one line per acknowledged write."""
    authority = world()
    with CollateralStore(path, roots=authority.trust_roots) as store:
        print("open", flush=True)
        for number in range(first, first + 1_000_000):
            seen = NOW + timedelta(hours=number)
            collateral = authority.publish(seen)
            documents = take_apart(collateral, fmspc=authority.machine.fmspc, ca="platform", tee="sgx")
            store.add(documents, seen=seen, source="crash benchmark")
            print(number, flush=True)


def kill_once(path: Path, first: int, chance: random.Random) -> list[int]:
    """Run a writer, kill it, and give the numbers that were acknowledged."""
    command = [sys.executable, "-m", "benchmarks.store_crash", "--write", str(first), "--folder", str(path.parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout is not None
    # From before the store is open to well into the writes: nine of ten kills wait for "open" and the first number.
    heard = b"".join(child.stdout.readline() for _ in range(2)) if chance.random() < 0.9 else b""
    time.sleep(chance.uniform(0, 0.08))
    child.send_signal(signal.SIGKILL)
    lines = (heard + child.stdout.read()).split(b"\n")
    child.wait()
    # A line without its end was cut off by the kill: that write was not acknowledged.
    return [int(line) for line in lines[:-1] if line.isdigit()]


def compare(path: Path, acknowledged: set[int]) -> tuple[int, int, int, float]:
    """Lost and torn versions, versions found, and seconds to open the store."""
    authority = world()
    key = DocumentKey.tcb_info("sgx", authority.machine.fmspc)
    start = time.perf_counter()
    with CollateralStore(path, roots=authority.trust_roots) as store:
        opening = time.perf_counter() - start
        store.check()
        found = {version.facts.issue_date: version for version in store.history(key)}
        lists = {version.facts.issue_date for version in store.history(DocumentKey.pck_crl("platform"))}
        torn = 0
        for version in found.values():
            document = store.load(version)
            verify_document(document, roots=authority.trust_roots)
            # One write keeps four documents: all of them or none.
            torn += document.digest() != version.digest or version.facts.issue_date not in lists
        torn += len(lists - found.keys())
        issued = {NOW + timedelta(hours=number) - timedelta(days=1) for number in acknowledged}
        return len(issued - found.keys()), torn, len(found), opening


def rows(kills: int = 100, folder: Path | None = None, seed: int = 7) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / "store.sqlite"
        chance = random.Random(seed)
        acknowledged: set[int] = set()
        lost = torn = found = 0
        openings = []
        for number in range(kills):
            acknowledged |= set(kill_once(path, number * 1000, chance))
            if path.exists():
                lost, torn, found, opening = compare(path, acknowledged)
                openings.append(opening)
            if lost or torn:
                break
        note = f"{kills} kills -9: {len(acknowledged)} writes acknowledged, {found} found, {lost} lost, {torn} torn"
        yield Row("writes lost or torn", lost + torn, "", note=f"{note}; opening {spread(openings)}")
        if lost or torn or not acknowledged:
            sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write is not None:
        write(given.folder / "store.sqlite", given.write)
    show(rows(given.kills, given.folder, given.seed))
