"""Quotes of an enclave over a platform that changes under it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import pytest

from confcom.errors import BindingError, FormatError, KeyNotInitialized, PlatformError, ReportRejected
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.interface import QuoteResult
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.simulator.enclaves import QE3
from confcom.simulator.machine import REPORT_SCHEMES, SimulatedMachine
from confcom.simulator.world import SimulatedPlatform

DATA = bytes(range(64))
NONCE = bytes(range(16))


def test_the_quote_is_of_the_enclave_and_over_the_data(world, enclave) -> None:
    quote = Quote.parse(EnclaveQuoteSource(world.platform, enclave).quote(DATA).quote)
    assert quote.report_data == DATA
    assert quote.body == enclave.create_report(world.platform.init_quote().target_info, DATA).body
    assert quote.trailing == b""


def test_a_nonce_brings_the_qe_report_that_the_enclave_can_check(world, enclave) -> None:
    result = EnclaveQuoteSource(world.platform, enclave).quote(DATA, nonce=NONCE)
    info = result.qe_report_info
    assert info is not None
    assert info.nonce == NONCE
    assert info.qe_report.body.report_data == hashlib.sha256(NONCE + result.quote).digest() + bytes(32)
    enclave.verify_report(info.qe_report)


def test_without_a_nonce_there_is_no_qe_report(world, enclave) -> None:
    assert EnclaveQuoteSource(world.platform, enclave).quote(DATA).qe_report_info is None


@pytest.mark.promise("M10")
def test_an_update_of_the_platform_between_two_quotes_is_survived(world, enclave) -> None:
    """TCB recovery: the attestation key of before is gone, and reports must be made anew."""
    source = EnclaveQuoteSource(world.platform, enclave)
    before = Quote.parse(source.quote(DATA).quote)
    world.machine.tcb = world.machine.tcb.with_component(0, 12)
    after = Quote.parse(source.quote(DATA).quote)
    assert after.report_data == DATA
    assert after.body.cpu_svn != before.body.cpu_svn
    assert after.signature.attestation_key != before.signature.attestation_key


@pytest.mark.promise("M10")
def test_a_restarted_helper_without_a_key_is_initialized_again(world, enclave) -> None:
    """What the source remembers is from a helper that is no more."""
    source = EnclaveQuoteSource(world.platform, enclave)
    source.quote(DATA)
    source.platform = SimulatedPlatform(world.machine, world.authority)
    assert Quote.parse(source.quote(DATA).quote).report_data == DATA


@dataclass
class FaultyPlatform:
    """A real platform behind a fault: what a broken or hostile helper does."""

    inner: SimulatedPlatform
    fault: str
    quotes: int = 0
    name: str = "faulty"
    simulated: bool = True

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        return self.inner.key_ids()

    def init_quote(self, key_id: AttestationKeyId | None = None):
        return self.inner.init_quote(key_id)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        return self.inner.quote_size(key_id)

    def quote(
        self, report: Report, key_id: AttestationKeyId | None = None, qe_report_info: QeReportInfo | None = None
    ) -> QuoteResult:
        self.quotes += 1
        result = self.inner.quote(report, key_id, qe_report_info)
        match self.fault:
            case "rejects":
                raise ReportRejected("never good")
            case "forgets":
                raise KeyNotInitialized("no key")
            case "no QE report":
                return replace(result, qe_report_info=None)
            case "old QE report":
                assert qe_report_info is not None
                other = self.inner.quote(report, key_id, replace(qe_report_info, nonce=bytes(16)))
                return replace(result, qe_report_info=other.qe_report_info)
            case "garbage":
                return QuoteResult(b"\0" * 2000)
        raise AssertionError(self.fault)


@pytest.mark.parametrize(("fault", "error"), [("rejects", ReportRejected), ("forgets", KeyNotInitialized)])
def test_it_tries_once_more_and_no_further(fault: str, error: type[Exception], world, enclave) -> None:
    platform = FaultyPlatform(world.platform, fault)
    with pytest.raises(error):
        EnclaveQuoteSource(platform, enclave).quote(DATA)
    assert platform.quotes == 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("no QE report", PlatformError, "gave no QE report"),
        ("old QE report", BindingError, "not about this quote and nonce"),
        ("garbage", FormatError, "version"),
    ],
)
def test_answers_that_do_not_fit_are_refused(fault: str, error: type[Exception], message: str, world, enclave) -> None:
    with pytest.raises(error, match=message):
        EnclaveQuoteSource(FaultyPlatform(world.platform, fault), enclave).quote(DATA, nonce=NONCE)


def test_a_quote_of_another_report_is_refused(world, enclave, other_enclave) -> None:
    @dataclass
    class Mixer(FaultyPlatform):
        def quote(self, report, key_id=None, qe_report_info=None) -> QuoteResult:
            target = self.inner.init_quote().target_info
            return self.inner.quote(other_enclave.create_report(target, report.body.report_data))

    with pytest.raises(PlatformError, match="another report"):
        EnclaveQuoteSource(Mixer(world.platform, ""), enclave).quote(DATA)


@pytest.mark.parametrize("size", [0, 32, 63, 65, 4096])
def test_report_data_has_64_bytes(size: int, world, enclave) -> None:
    with pytest.raises(FormatError, match=f"64 bytes, found {size}"):
        EnclaveQuoteSource(world.platform, enclave).quote(bytes(size))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_nonce_has_16_bytes(size: int, world, enclave) -> None:
    with pytest.raises(FormatError, match=f"16 bytes, found {size}"):
        EnclaveQuoteSource(world.platform, enclave).quote(DATA, nonce=bytes(size))


def test_an_enclave_of_the_sdks_simulation_mode_learns_who_takes_its_reports(world) -> None:
    """Behind an AESM socket there is a number only: who made the report knows more."""

    class Refusing(SimulatedPlatform):
        def quote(self, report: Report, *_: object, **__: object) -> QuoteResult:
            raise ReportRejected("the AESM service answered GetQuoteEx with 47 (INVALID_REPORT)")

    enclave = SimulatedMachine(bytes(32), report_scheme=REPORT_SCHEMES["sdk-simulation"]).launch(QE3)
    with pytest.raises(ReportRejected, match="only simulated machines take those"):
        EnclaveQuoteSource(Refusing(world.machine, world.authority), enclave).quote(DATA)
