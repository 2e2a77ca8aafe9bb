"""Verifications per second of one core: cold (everything anew) and warm (platform and collateral known by content).

Beside dcap-qvl on the same input, and beside the limit: the ECDSA P-256 verifications that each needs, at the speed of
the OpenSSL inside `cryptography`. A real quote is used where the folder of vectors is there, a simulated one elsewhere.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from pathlib import Path

import dcap_qvl  # type: ignore[import-untyped]  # the package carries no types
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from benchmarks.measure import percentile, rate, row
from benchmarks.simulated import simulated_input
from confcom.appraisal.collateral import Collateral
from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.bundle import load_bundle
from confcom.pki.roots import TrustRoots

COLD_VERIFICATIONS = 9
"""Intermediate, PCK, root CRL, PCK CRL, TCB signing, TCB info, QE identity, QE report, quote."""
WARM_VERIFICATIONS = 2
"""QE report and quote."""

REAL = {
    "SGX v3": ("real/sgx3-00A067110000-dcap_qvl-f8b81014-20250621", 1750503371),
    "TDX v4": ("negative/tdx4-f1c85033-baseline", None),
}
"""Kind → folder of the vectors, and the time to judge at (None: the one in its meta.json)."""

LATENCIES = 4000
"""Verifications that are timed one by one."""


@dataclass(frozen=True, slots=True)
class Input:
    """One quote with what it is judged by."""

    name: str
    quote: bytes
    collateral: Collateral
    collateral_json: str
    roots: TrustRoots
    now: datetime


def main() -> None:
    limit = _limit()
    print(row("one ECDSA P-256 verification (OpenSSL)", limit))
    for data in _inputs():
        _compare(data, limit)


def _compare(data: Input, limit: float) -> None:
    print(f"  -- {data.name}, {len(data.quote)} bytes, one thread")
    warm_verifier = QuoteVerifier(data.roots)
    cold = rate(lambda: QuoteVerifier(data.roots).verify(data.quote, _fresh(data.collateral), now=data.now))
    warm = rate(lambda: warm_verifier.verify(data.quote, data.collateral, now=data.now))
    peer_collateral = dcap_qvl.QuoteCollateralV3.from_json(data.collateral_json)
    root, now = data.roots.roots[0].certificate_der, int(data.now.timestamp())
    peer = rate(lambda: dcap_qvl.verify_with_root_ca(data.quote, peer_collateral, root, now))
    print(row("dcap-qvl, collateral object reused", peer))
    cold_limit, warm_limit = limit / COLD_VERIFICATIONS, limit / WARM_VERIFICATIONS
    print(row("confcom cold", cold, beside=f"{cold / peer:.2f} x dcap-qvl, {cold / cold_limit:.0%} of the limit"))
    print(row("confcom warm", warm, beside=f"{warm / peer:.2f} x dcap-qvl, {warm / warm_limit:.0%} of the limit"))
    print(row(f"limit cold ({COLD_VERIFICATIONS} verifications)", cold_limit))
    print(row(f"limit warm ({WARM_VERIFICATIONS} verifications)", warm_limit))
    p50, p99 = _latency(lambda: warm_verifier.verify(data.quote, data.collateral, now=data.now))
    print(row("confcom warm, latency p50", p50, unit="µs", beside=f"p99 {p99:,.0f} µs"))
    p50, p99 = _latency(lambda: dcap_qvl.verify_with_root_ca(data.quote, peer_collateral, root, now))
    print(row("dcap-qvl, latency p50", p50, unit="µs", beside=f"p99 {p99:,.0f} µs"))
    both = _processes(data, os.cpu_count() or 1)
    print(row(f"confcom warm, {os.cpu_count()} processes", both, beside=f"{both / warm:.2f} x one process"))


def _latency(call: Callable[[], object]) -> tuple[float, float]:
    values = []
    for _ in range(LATENCIES):
        start = time.perf_counter()
        call()
        values.append((time.perf_counter() - start) * 1e6)
    return percentile(values, 0.5), percentile(values, 0.99)


def _processes(data: Input, count: int) -> float:
    """Verifications per second of several processes at a time, each with a verifier of its own."""
    context = multiprocessing.get_context("fork")
    results: Queue[float] = context.Queue()

    def work() -> None:
        verifier = QuoteVerifier(data.roots)
        results.put(rate(lambda: verifier.verify(data.quote, data.collateral, now=data.now)))

    workers = [context.Process(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    total = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


def _inputs() -> Iterator[Input]:
    named = os.environ.get("CONFCOM_VECTORS")
    vectors = Path(named) if named else Path(__file__).resolve().parent.parent.parent / "shared" / "vectors"
    if not (vectors / "index.tsv").is_file():
        yield Input("a simulated quote v3", *simulated_input())
        return
    for kind, (name, at) in REAL.items():
        folder = vectors / name
        moment = at or json.loads((folder / "meta.json").read_text())["time"]
        yield Input(
            f"a real quote, {kind}",
            (folder / "quote.bin").read_bytes(),
            load_bundle(folder),
            (folder / "collateral.json").read_text(),
            TrustRoots.intel(),
            datetime.fromtimestamp(moment, UTC),
        )


def _fresh(collateral: Collateral) -> Collateral:
    # A new object each time, so that nothing computed on an earlier one helps.
    return Collateral(
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info,
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        qe_identity=collateral.qe_identity,
        root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain,
        source=collateral.source,
    )


def _limit() -> float:
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm = ec.ECDSA(SHA256())
    message = bytes(432)
    signature, public = key.sign(message, algorithm), key.public_key()
    return rate(lambda: public.verify(signature, message, algorithm))
