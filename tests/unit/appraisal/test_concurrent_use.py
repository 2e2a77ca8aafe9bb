"""One verifier from many threads, and results and errors across processes: both are promised in the documentation."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Barrier

import pytest

from confcom.appraisal.policy import safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, accept_quote, judge
from confcom.errors import PolicyError, SignatureError
from confcom.pki.chain import TrustRoots
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld

SIMULATED = safe_defaults(accept_simulated=True)
WORLDS, THREADS, ROUNDS = 6, 8, 80


def quote_of(world: SimulatedWorld, report_data: bytes) -> bytes:
    report = world.machine.launch(EnclaveDeclaration.from_names("app", "vendor")).create_report(
        world.platform.init_quote().target_info, report_data
    )
    return world.platform.quote(report).quote


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_share_a_verifier_that_forgets_while_they_use_it(now) -> None:
    worlds = [SimulatedWorld.from_seed(b"seed of world number %d" % number, now=now) for number in range(WORLDS)]
    cases = [(quote_of(world, bytes([number]) * 64), world.publish()) for number, world in enumerate(worlds)]
    roots = TrustRoots(tuple(root for world in worlds for root in world.trust_roots.roots))
    verifier = QuoteVerifier(roots, cache_size=2)
    start = Barrier(THREADS)

    def judge_all(shift: int) -> list[int]:
        start.wait(60)
        found = []
        for turn in range(ROUNDS):
            quote, collateral = cases[(turn + shift) % WORLDS]
            found.append(verifier.verify(quote, collateral, now=now).report_data[0])
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        for shift, found in enumerate(pool.map(judge_all, range(THREADS))):
            assert found == [(turn + shift) % WORLDS for turn in range(ROUNDS)]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_results_and_refusals_come_back_from_a_process_pool(processes, world, verifier, make_quote, now) -> None:
    good, collateral = make_quote(bytes(range(64))), world.publish()
    forged = bytearray(good)
    forged[48 + 64] ^= 1
    words = {"verifier": verifier, "now": now}
    results = [
        processes.submit(judge, quote, collateral, policy=policy, **words)
        for quote, policy in ((good, SIMULATED), (good, safe_defaults()), (bytes(forged), SIMULATED))
    ]
    accepted, refused, invalid = (one.result(60) for one in results)
    assert isinstance(accepted, AttestationResult)
    assert [one.verdict.value for one in (accepted, refused, invalid)] == ["accepted", "refused", "invalid"]
    assert accepted.require().report_data == bytes(range(64))
    assert not refused
    assert invalid.error.as_dict()["code"] == "signature-invalid"
    with pytest.raises(PolicyError, match="hardware") as raised:
        processes.submit(accept_quote, good, collateral, safe_defaults(), **words).result(60)
    assert raised.value.advice()
    with pytest.raises(SignatureError) as unauthentic:
        processes.submit(verifier.verify, bytes(forged), collateral, now=now).result(60)
    assert unauthentic.value.step == "quote-signature"
    # The pool survived all of it.
    assert processes.submit(verifier.verify, good, collateral, now=now).result(60).simulated
