"""A simulated world and a quote of it, for tests of verification and appraisal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime

import pytest

from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote
from confcom.formats.quote import Quote
from confcom.pki.proof import PROOF
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)

MakeQuote = Callable[..., bytes]


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the appraisal tests", now=NOW)


@pytest.fixture
def make_quote(world: SimulatedWorld) -> MakeQuote:
    """A quote of the first machine for an enclave that the test declares."""

    def make(report_data: bytes = bytes(64), **declared: object) -> bytes:
        declaration = EnclaveDeclaration.from_names("app", "vendor", **declared)  # type: ignore[arg-type]
        target = world.platform.init_quote().target_info
        report = world.machine.launch(declaration).create_report(target, report_data)
        return world.platform.quote(report).quote

    return make


@pytest.fixture
def verifier(world: SimulatedWorld) -> QuoteVerifier:
    return QuoteVerifier(world.trust_roots)


@pytest.fixture
def verified_td(world: SimulatedWorld, make_quote: MakeQuote, verifier: QuoteVerifier) -> Callable[..., VerifiedQuote]:
    """A quote as if it had been verified: for policies about TDs, whatever the simulator can make."""
    enclave = verifier.verify(make_quote(), world.publish(), now=NOW)
    values = {item.name: getattr(enclave, item.name) for item in fields(enclave)}
    return lambda quote: VerifiedQuote(**values | {"quote": Quote.parse(quote)}, proof=PROOF)
