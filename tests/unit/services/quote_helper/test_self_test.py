"""The self-test of a helper: what it asks, and that it notices what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from confcom.errors import CollateralUnavailable, ReportRejected
from confcom.platforms.interface import Platform
from confcom.services.quote_helper.self_test import ClientQuote, SelfTest, SelfTestKit, SelfTestResult
from confcom.services.quote_helper.telemetry import QuoteHelperMetrics
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from recording_platform import RecordingPlatform
from running_helper import running_helper

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"self-test".ljust(32, b"."), now=NOW - timedelta(days=100))


@pytest.fixture
def kit(world: SimulatedWorld) -> SelfTestKit:
    enclave = world.machine.launch(EnclaveDeclaration.from_names("self-test"))
    return SelfTestKit(enclave, lambda _, now: world.publish(now), world.trust_roots, simulated=True)


@contextmanager
def helper_tested(
    platform: Platform, path: Path, kit: SelfTestKit | None, *, last: ClientQuote | None = None, clients: bool = True
) -> Iterator[SelfTestResult]:
    with running_helper(platform, path):
        yield SelfTest(kit, path, now=lambda: NOW).run(path, last=last, clients=clients)


def outcome(result: SelfTestResult) -> dict[str, bool]:
    return {check.id: check.ok for check in result.checks}


def test_a_good_helper_passes_and_shows_its_platform(tmp_path: Path, world: SimulatedWorld, kit: SelfTestKit) -> None:
    with helper_tested(world.platform, tmp_path / "aesm.socket", kit) as result:
        assert result.ok
        assert list(outcome(result)) == ["attestation-key", "quote", "verification", "recorded-clients"]
        assert result.verified is not None
        assert result.verified.tcb_status == "UpToDate"
        registry = CollectorRegistry()
        metrics = QuoteHelperMetrics(registry, lambda event: None)
        metrics.self_tested(result)
        shown = generate_latest(registry).decode()

    assert 'confcom_quote_helper_tcb_status{status="UpToDate"} 1.0' in shown
    assert "confcom_quote_helper_certification_data_age_seconds 8.7264e+06" in shown
    # Both begin the day before: 101 of the certificate's days are over, 29 of the collateral's thirty are left.
    assert "confcom_quote_helper_collateral_expires_seconds 2.5056e+06" in shown


def test_collateral_out_of_date_is_a_failure_that_names_it(
    tmp_path: Path, world: SimulatedWorld, kit: SelfTestKit
) -> None:
    old = replace(kit, collateral=lambda _, now: world.publish(now - timedelta(days=60)))
    with helper_tested(world.platform, tmp_path / "aesm.socket", old, clients=False) as result:
        assert outcome(result) == {"attestation-key": True, "quote": True, "verification": False}
        assert "not valid at present" in result.failures()


def test_a_source_that_does_not_answer_may_be_asked_again(
    tmp_path: Path, world: SimulatedWorld, kit: SelfTestKit
) -> None:
    def unavailable(quote: bytes, now: datetime) -> object:
        raise CollateralUnavailable("the PCCS does not answer")

    silent = replace(kit, collateral=unavailable)  # type: ignore[arg-type]
    with helper_tested(world.platform, tmp_path / "aesm.socket", silent) as result:
        assert not result.ok
        assert isinstance(result.error, CollateralUnavailable)


def test_quotes_of_another_world_are_not_verified(tmp_path: Path, world: SimulatedWorld, kit: SelfTestKit) -> None:
    other = SimulatedWorld.from_seed(b"another".ljust(32, b"."), now=NOW)
    foreign = replace(kit, roots=other.trust_roots, collateral=lambda _, now: other.publish(now))
    with helper_tested(world.platform, tmp_path / "aesm.socket", foreign) as result:
        assert outcome(result) == {"attestation-key": True, "quote": True, "verification": False}


def test_answers_that_old_clients_cannot_use_are_noticed(tmp_path: Path) -> None:
    with helper_tested(RecordingPlatform(can_report=False), tmp_path / "aesm.socket", None) as result:
        assert outcome(result) == {"attestation-key": True, "recorded-clients": False}
        assert "Fortanix" in result.failures()


class RealPlatform(RecordingPlatform):
    """As hardware: it refuses reports that no enclave made."""

    def quote(self, report: object, *rest: object, **more: object) -> object:  # type: ignore[override]
        if bytes(report)[-16:] == bytes(16):  # type: ignore[call-overload]
            raise ReportRejected("the MAC is wrong")
        return super().quote(report, *rest, **more)  # type: ignore[arg-type]


def test_without_an_enclave_the_qe_must_refuse_a_report_that_nobody_made(tmp_path: Path, world: SimulatedWorld) -> None:
    kit = SelfTestKit(None, None, world.trust_roots, simulated=False)
    with helper_tested(RealPlatform(), tmp_path / "aesm.socket", kit) as result:
        assert result.ok, result.failures()
        found = {check.id: check.found for check in result.checks}
        assert "a report that no enclave made is refused" in found["quote"]
        assert found["verification"] == "not done: no collateral is configured"


def test_a_qe_that_signs_anything_is_a_failure(tmp_path: Path, world: SimulatedWorld) -> None:
    kit = SelfTestKit(None, None, world.trust_roots, simulated=False)
    with helper_tested(RecordingPlatform(), tmp_path / "aesm.socket", kit) as result:
        assert outcome(result)["quote"] is False


def test_without_a_report_that_it_takes_the_latest_quote_of_a_client_is_verified(
    tmp_path: Path, world: SimulatedWorld, kit: SelfTestKit
) -> None:
    assert kit.enclave is not None
    quote = world.platform.quote(kit.enclave.create_report(world.platform.init_quote().target_info, bytes(64))).quote
    without = replace(kit, enclave=None)
    of_another_tcb = bytes(432)
    last = ClientQuote(of_another_tcb, quote)
    with helper_tested(world.platform, tmp_path / "a.socket", without, last=last, clients=True) as result:
        assert result.ok, result.failures()
        assert result.verified is not None
    with helper_tested(world.platform, tmp_path / "b.socket", without) as result:
        assert result.ok
        assert result.verified is None
    broken = ClientQuote(of_another_tcb, quote[:-1])
    with helper_tested(world.platform, tmp_path / "c.socket", without, last=broken) as result:
        assert outcome(result)["verification"] is False


def test_nobody_at_the_path_is_a_failure_not_a_crash(tmp_path: Path, kit: SelfTestKit) -> None:
    result = SelfTest(kit, tmp_path / "nothing", now=lambda: NOW).run(tmp_path / "nothing")

    assert outcome(result) == {"attestation-key": False}
