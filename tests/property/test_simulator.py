"""What holds for every simulated machine, enclave, report and quote."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confcom.appraisal.quote import QuoteVerifier
from confcom.errors import FormatError, ReportRejected, UntrustedRootError, VerificationError
from confcom.formats.quote import Quote
from confcom.formats.sgx import AttributeFlags, Attributes, QeReportInfo, Report
from confcom.pki.chain import TrustRoots
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import REPORT_SCHEMES, MachineFile, MachineTcb, PckCa, SimulatedMachine
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 11, 21, tzinfo=UTC)
WORLD = SimulatedWorld.from_seed(bytes(range(32)), now=NOW)
QE_TARGET = WORLD.platform.init_quote().target_info

VERIFIER = QuoteVerifier(WORLD.trust_roots)
COLLATERAL = WORLD.publish()

u16 = st.integers(0, 0xFFFF)
seeds = st.binary(min_size=16, max_size=64)
schemes = st.sampled_from(sorted(REPORT_SCHEMES))
report_data = st.binary(min_size=64, max_size=64)
tcbs = st.builds(MachineTcb, st.tuples(*[st.integers(0, 255)] * 16), u16)
declarations = st.builds(
    EnclaveDeclaration,
    mr_enclave=st.binary(min_size=32, max_size=32),
    mr_signer=st.binary(min_size=32, max_size=32),
    isv_prod_id=u16,
    isv_svn=u16,
    attributes=st.builds(
        lambda flags, xfrm: Attributes(flags | int(AttributeFlags.INIT | AttributeFlags.KSS), xfrm),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
    ),
    misc_select=st.integers(0, 2**32 - 1),
    config_id=st.binary(min_size=64, max_size=64),
    config_svn=u16,
    isv_ext_prod_id=st.binary(min_size=16, max_size=16),
    isv_family_id=st.binary(min_size=16, max_size=16),
)


@given(seeds, tcbs, schemes, declarations, declarations, report_data)
@settings(max_examples=60, deadline=None)
def test_any_two_enclaves_of_any_machine_attest_locally(seed, tcb, scheme, reporter, target, data):
    machine = SimulatedMachine(seed, tcb=tcb, report_scheme=REPORT_SCHEMES[scheme])
    report = machine.launch(reporter).create_report(machine.launch(target).target_info, data)
    machine.launch(target).verify_report(Report.parse(bytes(report)))


@given(declarations, declarations, report_data)
@settings(max_examples=60, deadline=None)
def test_no_other_target_accepts_a_report(reporter, target, data):
    machine = WORLD.machine
    report = machine.launch(reporter).create_report(machine.launch(reporter).target_info, data)
    if machine.launch(target).target_info != machine.launch(reporter).target_info:
        with pytest.raises(ReportRejected):
            machine.launch(target).verify_report(report)


@given(declarations, report_data, st.binary(min_size=16, max_size=16))
@settings(max_examples=60, deadline=None)
def test_every_genuine_report_becomes_the_same_well_formed_quote_again_and_again(declaration, data, nonce):
    enclave = WORLD.machine.launch(declaration)
    report = enclave.create_report(QE_TARGET, data)
    info = QeReportInfo(nonce, enclave.target_info, Report.parse(bytes(432)))
    first, second = (WORLD.platform.quote(report, None, info) for _ in range(2))
    assert bytes(first.qe_report_info) == bytes(second.qe_report_info)
    assert first.quote == second.quote
    assert len(first.quote) == WORLD.platform.quote_size()
    parsed = Quote.parse(first.quote)
    assert parsed.body == report.body
    assert bytes(parsed) == first.quote
    enclave.verify_report(first.qe_report_info.qe_report)


@given(st.integers(0, 432 * 8 - 1), declarations)
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_of_a_report_gets_a_quote(bit, declaration):
    report = bytearray(bytes(WORLD.machine.launch(declaration).create_report(QE_TARGET, bytes(64))))
    report[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ReportRejected):
        WORLD.platform.quote(Report.parse(bytes(report)))


@given(st.binary(min_size=432, max_size=432))
@settings(max_examples=100, deadline=None)
def test_no_made_up_report_gets_a_quote(data):
    with pytest.raises(ReportRejected):
        WORLD.platform.quote(Report.parse(data))


@given(declarations, report_data)
@settings(max_examples=30, deadline=None)
def test_every_quote_is_authentic_below_its_own_root_and_no_other(declaration, data):
    quote = WORLD.platform.quote(WORLD.machine.launch(declaration).create_report(QE_TARGET, data)).quote
    verified = VERIFIER.verify(quote, COLLATERAL, now=NOW)
    assert verified.root.simulated
    assert verified.quote.body.report_data == data
    with pytest.raises(UntrustedRootError):
        QuoteVerifier(TrustRoots.intel()).verify(quote, COLLATERAL, now=NOW)


@given(st.integers(0, 432 * 8 - 1) | st.integers(436 * 8, 1046 * 8 - 1), report_data)
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_of_what_is_signed_leaves_a_quote_authentic(bit, data):
    enclave = WORLD.machine.launch(EnclaveDeclaration.from_names("property"))
    quote = bytearray(WORLD.platform.quote(enclave.create_report(QE_TARGET, data)).quote)
    quote[bit // 8] ^= 1 << bit % 8
    with pytest.raises((VerificationError, FormatError)):
        VERIFIER.verify(bytes(quote), COLLATERAL, now=NOW)


@given(
    st.builds(
        MachineFile,
        seed=seeds,
        created=st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        index=u16,
        tcb=tcbs,
        pck_ca=st.sampled_from(PckCa),
        report_scheme=schemes,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_machine_file_is_read_as_it_was_written(file):
    assert MachineFile.parse(bytes(file)) == file


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_no_machine_file_gets_out_of_the_error_family(data):
    with pytest.raises(FormatError):
        MachineFile.parse(data)


@given(st.integers(0, len(bytes(MachineFile(seed=bytes(32), created=NOW))) - 1), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_machine_file_is_read_or_refused(offset, value):
    data = bytearray(bytes(MachineFile(seed=bytes(range(32)), created=NOW)))
    data[offset] = value
    try:
        file = MachineFile.parse(bytes(data))
    except FormatError as error:
        shown = str(error)
    else:
        shown = repr(file)
        SimulatedWorld((file,)).platform.init_quote()
    assert bytes(range(32)).hex() not in shown
