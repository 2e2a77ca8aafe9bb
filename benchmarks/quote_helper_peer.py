"""The quote helper beside a plain C service, in turns of one run: quotes per second, p99, processor time per quote.

First with a QE in software: ours is the simulated platform, the peer's spins for one P-256 signature of this machine.
Then with a QE that takes as long as one in hardware (`QE_SECONDS`, processor time, spun in both): ours is behind
Intel's platform with the stand-in for Intel's library, in a process of its own as on hardware.

`--peer PROGRAM` names another peer, called as `aesm_reference`: PROGRAM SOCKET ANSWER-SIZE NANOSECONDS.
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

from benchmarks.helper_load import Asked, Load, Stage, asked, used_seconds
from benchmarks.measure import Row, number, show
from benchmarks.quote_helper import signature_limit
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.platforms.intel.platform import IntelWorkerPlatform
from confcom.protocols.aesm_messages import GetQuoteExRequest
from confcom.services.quote_helper.helper import QuoteHelperConfig, serve
from confcom.services.quote_helper.request_log import RequestLog

ROOT = Path(__file__).resolve().parent.parent
QE_SECONDS = 0.0035
"""3 to 4 ms were measured for a quote over a socket to hardware (attestation-rs, pull request 30)."""
STAND_IN_QUOTE = 4700
"""Bytes of the stand-in's quotes."""
ROUNDS = 6
SECONDS = 0.5
CLIENTS = (1, 4, 16, 64)


def rows(peer: str = "") -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name))
        program = peer or str(stage.build("aesm_reference"))
        quotes = stage.requests()["quotes"]
        work = 1 / signature_limit()
        ours = stage.start()
        yield from _beside(stage, ours, quotes, program, work, "QE in software")
        request = GetQuoteExRequest(bytes(432), STAND_IN_QUOTE, bytes(ECDSA_P256_KEY_ID))
        quotes = asked(request, STAND_IN_QUOTE)
        ours = _start_on_stand_in(stage)
        yield from _beside(stage, ours, quotes, program, QE_SECONDS, f"QE of {QE_SECONDS * 1e3:g} ms")


def _beside(
    stage: Stage,
    ours: subprocess.Popen[str],
    quotes: Asked,
    program: str,
    work: float,
    qe: str,
) -> Iterator[Row]:
    sockets = {"ours": stage.path, "peer": stage.folder / "peer.socket"}
    command = [program, str(sockets["peer"]), str(quotes.least + 14), str(int(work * 1e9))]
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert peer.stdout is not None
    assert "ready" in peer.stdout.readline()
    processes = {"ours": ours, "peer": peer}
    try:
        for threads in CLIENTS:
            loads: dict[str, list[tuple[Load, float]]] = {"ours": [], "peer": []}
            for _ in range(ROUNDS):
                for name, process in processes.items():
                    stage.path = sockets[name]
                    before = used_seconds(process.pid)
                    load = stage.load(quotes, threads, SECONDS)
                    loads[name].append((load, (used_seconds(process.pid) - before) / max(1, len(load.latencies))))
            yield _row(f"quotes, {qe}, {threads} clients", loads["ours"], loads["peer"])
    finally:
        stage.path = sockets["ours"]
        for process in processes.values():
            process.terminate()
            process.wait()


def _row(name: str, ours: list[tuple[Load, float]], peer: list[tuple[Load, float]]) -> Row:
    # The best third: what else runs on the machine only ever slows.
    figures = []
    for turns in (ours, peer):
        best = sorted(turns, key=lambda turn: turn[0].per_second, reverse=True)[: max(1, ROUNDS // 3)]
        tail = median(load.at(0.99) for load, _ in best)
        figures.append((median(load.per_second for load, _ in best), tail, median(used for _, used in turns)))
    (per_second, tail, used), (other, other_tail, other_used) = figures
    failed = sum(load.failed for load, _ in ours)
    note = f"p99 {tail * 1e6:,.0f} beside {other_tail * 1e6:,.0f} µs, ratio {tail / other_tail:.2f}; "
    note += f"processor {number(used * 1e6)} beside {number(other_used * 1e6)} µs each; {failed} failed"
    return Row(name, per_second, beside=other, peer="C service", note=note)


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
    assert helper.stdout is not None
    assert "ready" in helper.stdout.readline()
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
    parser.add_argument("--peer", default="")
    parser.add_argument("--serve", nargs=2)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve[0], Path(arguments.serve[1]))
    else:
        show(rows(arguments.peer))
