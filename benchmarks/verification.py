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

from benchmarks.measure import Row, percentile, rate, show
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


def rows() -> Iterator[Row]:
    limit = _limit()
    yield Row("one ECDSA P-256 verification (OpenSSL)", limit)
    for data in _inputs():
        yield from _compare(data, limit)


def _compare(data: Input, limit: float) -> Iterator[Row]:
    warm_verifier = QuoteVerifier(data.roots)
    cold = rate(lambda: QuoteVerifier(data.roots).verify(data.quote, _fresh(data.collateral), now=data.now))
    warm = rate(lambda: warm_verifier.verify(data.quote, data.collateral, now=data.now))
    peer_collateral = dcap_qvl.QuoteCollateralV3.from_json(data.collateral_json)
    root, now = data.roots.roots[0].certificate_der, int(data.now.timestamp())
    peer = rate(lambda: dcap_qvl.verify_with_root_ca(data.quote, peer_collateral, root, now))
    for what, ours, needed in (("cold", cold, COLD_VERIFICATIONS), ("warm", warm, WARM_VERIFICATIONS)):
        share = f"{ours * needed / limit:.0%} of {needed} ECDSA verifications"
        yield Row(f"{what}, {data.name}", ours, beside=peer, peer="dcap-qvl, collateral reused", note=share)
    p50, p99 = _latency(lambda: warm_verifier.verify(data.quote, data.collateral, now=data.now))
    peer50, peer99 = _latency(lambda: dcap_qvl.verify_with_root_ca(data.quote, peer_collateral, root, now))
    yield Row(f"warm, {data.name}, p50", p50, "µs", peer50, "dcap-qvl")
    yield Row(f"warm, {data.name}, p99", p99, "µs", peer99, "dcap-qvl")
    both = _processes(data, os.cpu_count() or 1)
    yield Row(f"warm, {data.name}, {os.cpu_count()} processes", both, beside=warm, peer="one process")


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
        yield Input("a simulated SGX v3", *simulated_input())
        return
    for kind, (name, at) in REAL.items():
        folder = vectors / name
        moment = at or json.loads((folder / "meta.json").read_text())["time"]
        yield Input(
            f"a real {kind}",
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


if __name__ == "__main__":
    show(rows())
