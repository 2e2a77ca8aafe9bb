from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from confcom.errors import KeyNotInitialized, ReportRejected, UnsupportedKeyId
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.interface import Platform
from confcom.simulator.machine import DEFAULT_TCB
from confcom.simulator.world import SimulatedWorld

GOLDEN_QUOTE = "f6bf5a21f5eb9602d91ff2720e31d3b7b39d4798db49645e1c9db0a56c3e28c6"


@pytest.fixture
def platform(world) -> Platform:
    return world.platform


def report_for(world, declaration, report_data=bytes(64)):
    target = world.platform.init_quote().target_info
    return world.machine.launch(declaration).create_report(target, report_data)


def test_it_says_what_it_is(platform):
    assert platform.name == "simulated"
    assert platform.simulated is True
    assert platform.key_ids() == (ECDSA_P256_KEY_ID,)


def test_a_report_becomes_a_quote_of_the_announced_size(world, platform, declaration):
    report = report_for(world, declaration, b"D" * 64)
    result = platform.quote(report)
    assert len(result.quote) == platform.quote_size()
    assert result.qe_report_info is None
    quote = Quote.parse(result.quote)
    assert quote.body == report.body
    assert quote.signature.certification.certification_data.data == world.authority.pck_chain(world.machine) + b"\0"


def test_the_quote_of_a_seed_never_changes(world, platform, declaration):
    # A change here changes every simulated quote that users keep as test data: say so in the change log.
    quote = platform.quote(report_for(world, declaration, b"D" * 64)).quote
    assert hashlib.sha256(quote).hexdigest() == GOLDEN_QUOTE
    again = SimulatedWorld.from_seed(bytes(range(32)), now=world.authority.now)
    assert again.platform.quote(report_for(again, declaration, b"D" * 64)).quote == quote


def test_initialisation_announces_the_key_that_signs(world, platform, declaration):
    initialized = platform.init_quote(ECDSA_P256_KEY_ID)
    quote = Quote.parse(platform.quote(report_for(world, declaration)).quote)
    certification = quote.signature.certification
    bound = hashlib.sha256(quote.signature.attestation_key + certification.qe_authentication_data).digest()
    assert initialized.pub_key_id == bound
    assert platform.init_quote() == initialized


def test_nothing_works_before_initialisation(platform):
    report = Report.parse(bytes(432))
    with pytest.raises(KeyNotInitialized):
        platform.quote_size()
    with pytest.raises(KeyNotInitialized):
        platform.quote(report)


def test_another_key_is_not_served(platform):
    other = ECDSA_P256_KEY_ID.with_algorithm(3)
    report = Report.parse(bytes(432))
    for call in (platform.init_quote, platform.quote_size, lambda key: platform.quote(report, key)):
        with pytest.raises(UnsupportedKeyId):
            call(other)


def test_the_reserved_half_of_a_key_id_does_not_matter(platform):
    platform.init_quote(replace(ECDSA_P256_KEY_ID, spid=b"\1" * 16, att_key_type=7))


def test_a_report_that_is_not_for_its_qe_is_rejected(world, platform, declaration):
    platform.init_quote()
    enclave = world.machine.launch(declaration)
    with pytest.raises(ReportRejected):
        platform.quote(enclave.create_report(enclave.target_info, bytes(64)))


def test_a_qe_report_can_be_checked_by_the_enclave_that_asked(world, platform, declaration):
    enclave = world.machine.launch(declaration)
    info = QeReportInfo(b"N" * 16, enclave.target_info, Report.parse(bytes(432)))
    result = platform.quote(report_for(world, declaration), None, info)
    enclave.verify_report(result.qe_report_info.qe_report)
    bound = hashlib.sha256(b"N" * 16 + result.quote).digest() + bytes(32)
    assert result.qe_report_info.qe_report.body.report_data == bound


def test_a_tcb_change_asks_for_another_initialisation_and_another_report(world, platform, declaration):
    before = platform.init_quote()
    old_report = report_for(world, declaration)
    world.machine.tcb = DEFAULT_TCB.with_component(0, 12)
    with pytest.raises(KeyNotInitialized, match="TCB"):
        platform.quote_size()
    with pytest.raises(KeyNotInitialized, match="TCB"):
        platform.quote(old_report)
    after = platform.init_quote()
    assert after.pub_key_id != before.pub_key_id
    with pytest.raises(ReportRejected):
        platform.quote(old_report)
    assert len(platform.quote(report_for(world, declaration)).quote) == platform.quote_size()


def test_a_renewed_pck_certificate_is_taken_up_at_the_next_initialisation(world, platform, declaration):
    before = platform.quote(report_for(world, declaration)).quote
    world.authority.pck_certificate(world.machine).expire(world.authority.now)
    after = platform.quote(report_for(world, declaration)).quote
    assert before[:1012] == after[:1012]
    assert before != after
    assert world.authority.pck_chain(world.machine) in after


def test_it_gives_its_own_collateral(world, platform):
    assert platform.collateral() == world.publish()
