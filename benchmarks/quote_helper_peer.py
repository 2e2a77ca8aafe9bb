"""The quote helper beside other AESM servers, in turns of one run: quotes per second, p99, processor time per quote.

The peers are Intel's own server code, where AESM_SOURCE names its source (`aesm_intel`), and a plain C service; beside
the QE in software also the least that one thread of Python can do (`aesm_bare`): accept, receive, sign, send, close.

First with a QE in software: ours is the simulated platform, the peers spin for as long as it takes for a quote.
Then with a QE that takes as long as one in hardware (`QE_SECONDS`, processor time, spun in all): ours is behind
Intel's platform with the stand-in for Intel's library, in a process of its own as on hardware.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.aesm_intel import build_intel_server
from benchmarks.helper_load import Asked, Load, Stage, asked, used_seconds
from benchmarks.measure import Row, number, show
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.platforms.intel.platform import IntelWorkerPlatform
from confcom.protocols.aesm import GetQuoteExRequest
from confcom.services.quote_helper.helper import QuoteHelperConfig, serve
from confcom.services.quote_helper.telemetry import RequestLog

OURS = "ours"
Commands = dict[str, list[Path]]
"""Peer → the words that start it, before its arguments."""
Turn = tuple[Load, float]
"""What the clients of one turn saw, and the server's processor seconds per quote."""
ROOT = Path(__file__).resolve().parent.parent
QE_SECONDS = 0.0035
"""3 to 4 ms were measured for a quote over a socket to hardware (attestation-rs, pull request 30)."""
STAND_IN_QUOTE = 4700
"""Bytes of the stand-in's quotes."""
ROUNDS = 4
SECONDS = 0.5
"""Of one turn with a QE in software; with the other one, twice as long."""
CLIENTS = (1, 4, 16, 64)


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name))
        programs: Commands = {"C service": [stage.build("aesm_reference")]}
        intel = build_intel_server(stage.folder)
        if isinstance(intel, Path):
            programs = {"Intel's server": [intel], **programs}
        else:
            print(f"  without Intel's server: {intel}")
        quotes = stage.requests()["quotes"]
        work = stage.quote_seconds()
        ours = stage.start()
        bare: Commands = {"bare Python": [Path(sys.executable), Path(__file__).with_name("aesm_bare.py")]}
        yield from _beside(stage, ours, quotes, programs | bare, work, "QE in software", SECONDS)
        request = GetQuoteExRequest(bytes(432), STAND_IN_QUOTE, bytes(ECDSA_P256_KEY_ID))
        quotes = asked(request, STAND_IN_QUOTE)
        ours = _start_on_stand_in(stage)
        qe = f"QE of {QE_SECONDS * 1e3:g} ms"
        yield from _beside(stage, ours, quotes, programs, QE_SECONDS, qe, 2 * SECONDS)


def _beside(
    stage: Stage,
    ours: subprocess.Popen[str],
    quotes: Asked,
    programs: Commands,
    work: float,
    qe: str,
    seconds: float,
) -> Iterator[Row]:
    places = {OURS: stage.path}
    processes = {OURS: ours}
    for name, program in programs.items():
        places[name] = stage.folder / f"{program[-1].name}.socket"
        command = [*map(str, program), str(places[name]), str(quotes.least + 14), str(int(work * 1e9))]
        processes[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        _wait_until_ready(processes[name])
    try:
        for threads in CLIENTS:
            turns: dict[str, list[Turn]] = {name: [] for name in processes}
            for _ in range(ROUNDS):
                for name, process in processes.items():
                    stage.path = places[name]
                    before = used_seconds(process.pid)
                    load = stage.load(quotes, threads, seconds)
                    turns[name].append((load, (used_seconds(process.pid) - before) / max(1, len(load.latencies))))
            for name in programs:
                yield _row(f"quotes, {qe}, {threads} clients", turns[OURS], turns[name], name)
    finally:
        stage.path = places[OURS]
        for process in processes.values():
            process.terminate()
            process.wait()


def _row(name: str, ours: list[Turn], others: list[Turn], peer: str) -> Row:
    # The better half: what else runs on the machine only ever slows.
    figures = []
    for turns in (ours, others):
        best = sorted(turns, key=lambda turn: turn[0].per_second, reverse=True)[: max(1, ROUNDS // 2)]
        tail = median(load.at(0.99) for load, _ in best)
        figures.append((median(load.per_second for load, _ in best), tail, median(used for _, used in turns)))
    (per_second, tail, used), (other, other_tail, other_used) = figures
    failed = sum(load.failed for load, _ in ours)
    note = f"p99 {tail * 1e6:,.0f} beside {other_tail * 1e6:,.0f} µs, ratio {tail / other_tail:.2f}; "
    note += f"processor {number(used * 1e6)} beside {number(other_used * 1e6)} µs each; {failed} failed"
    return Row(name, per_second, beside=other, peer=peer, note=note)


def _wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()


def _start_on_stand_in(stage: Stage) -> subprocess.Popen[str]:
    """A helper on Intel's platform, with the stand-in of the tests for Intel's library."""
    sys.path.insert(0, str(ROOT / "tests"))
    from software_qe import Stub, build_libraries  # type: ignore[import-not-found]

    stub = Stub(stage.folder / "stub")
    stub.folder.mkdir()
    stub.always("get_quote", f"spin {int(QE_SECONDS * 1e6)}")
    libraries = build_libraries(stage.folder / "libraries")
    helper = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.quote_helper_peer", "--serve", str(stage.path), str(libraries)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"DCAP_STUB": str(stub.folder)},
    )  # fmt: skip
    _wait_until_ready(helper)
    return helper


def _serve(socket: str, libraries: Path) -> None:
    platform = IntelWorkerPlatform(libraries)
    log = RequestLog(write=len)

    async def run() -> None:
        await serve(
            platform, QuoteHelperConfig(socket=socket), stop=asyncio.Event(),
            started=lambda: print("ready", flush=True), log=log,
        )  # fmt: skip

    asyncio.run(run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve[0], Path(arguments.serve[1]))
    else:
        show(rows())
