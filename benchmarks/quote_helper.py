"""Requests per second through the socket with 1, 4, 16 and 64 client threads, each with a new connection per request.

Client and server share the machine. Beside the limit: one P-256 signature per quote, at the speed of the OpenSSL inside
`cryptography`, on one core; and beside calling the platform directly, in the same process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from benchmarks.helper_load import Load, Stage, stop, used_seconds
from benchmarks.measure import Row, percentile, rate, show, spread
from confcom.simulator.declaration import EnclaveDeclaration

SECONDS = 3.0
THREADS = (1, 4, 16, 64)


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name))
        limit = signature_limit()
        direct = _direct(stage)
        yield Row("the platform called directly, one thread", len(direct) / sum(direct), note=spread(direct, unit="µs"))
        helper = stage.start()
        try:
            for kind, asked in stage.requests().items():
                for threads in THREADS if kind in ("quotes", "quote sizes") else (1, 4):
                    before = used_seconds(helper.pid)
                    load = stage.load(asked, threads, SECONDS)
                    used = (used_seconds(helper.pid) - before) / len(load.latencies)
                    yield _report(kind, threads, load, limit, direct, used)
        finally:
            stop(helper)


def _report(kind: str, threads: int, load: Load, limit: float, direct: list[float], used: float) -> Row:
    note = f"{spread(load.latencies, unit='µs')}, processor {used * 1e6:,.0f} µs each"
    if kind == "quotes" and threads == 1:
        added = [(load.at(share) - percentile(direct, share)) * 1e6 for share in (0.5, 0.99)]
        note += f"; added to the platform: p50 {added[0]:,.0f} µs, p99 {added[1]:,.0f} µs"
    if load.failed:
        note += f"; {load.failed} FAILED"
    beside = limit if kind.startswith("quotes") else None
    return Row(f"{kind}, {threads} client threads", load.per_second, beside=beside, peer="P-256 signatures", note=note)


def _direct(stage: Stage) -> list[float]:
    platform = stage.world.platform
    enclave = stage.world.machine.launch(EnclaveDeclaration.from_names("bench", "bench"))
    report = enclave.create_report(platform.init_quote().target_info, bytes(64))
    durations = []
    end = time.perf_counter() + SECONDS
    while (begin := time.perf_counter()) < end:
        platform.quote_size()
        platform.quote(report)
        durations.append(time.perf_counter() - begin)
    return durations


def signature_limit() -> float:
    """P-256 signatures per second of one core, by the OpenSSL inside `cryptography`."""
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm = ec.ECDSA(SHA256())
    return rate(lambda: key.sign(bytes(432), algorithm))


if __name__ == "__main__":
    show(rows())
