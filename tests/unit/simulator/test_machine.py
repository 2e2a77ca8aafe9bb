from __future__ import annotations

from dataclasses import replace

import pytest

from confcom.errors import ConfigError, FormatError, NativeError, ReportRejected
from confcom.formats.sgx import Report, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import DEFAULT_TCB, MachineTcb, SimulatedMachine

OTHER = EnclaveDeclaration.from_names("ledger")


def test_two_enclaves_of_one_machine_attest_each_other(machine, declaration):
    first, second = machine.launch(declaration), machine.launch(OTHER)
    report = first.create_report(second.target_info, b"hello".ljust(64, b"\0"))
    second.verify_report(report)
    assert report.body.mr_enclave == declaration.mr_enclave
    assert report.body.isv_svn == 5
    answer = second.create_report(first.target_info, b"hello back".ljust(64, b"\0"))
    first.verify_report(answer)
    assert answer.body.mr_enclave == OTHER.mr_enclave


def test_processes_that_know_the_seed_share_the_machine(seed, declaration):
    here, there = SimulatedMachine(seed), SimulatedMachine(seed)
    target = there.launch(OTHER)
    report = here.launch(declaration).create_report(target.target_info, bytes(64))
    target.verify_report(Report.parse(bytes(report)))
    assert bytes(report) == bytes(there.launch(declaration).create_report(target.target_info, bytes(64)))


@pytest.mark.parametrize(
    "change",
    [
        {"mr_enclave": b"?" * 32},
        {"config_svn": 1},
        {"misc_select": 1},
        {"config_id": b"?" * 64},
    ],
)
def test_a_report_for_another_target_is_rejected(machine, declaration, change):
    target = machine.launch(OTHER)
    aimed_elsewhere = replace(target.target_info, **change)
    report = machine.launch(declaration).create_report(aimed_elsewhere, bytes(64))
    with pytest.raises(ReportRejected):
        target.verify_report(report)


def test_a_report_for_the_debug_build_is_rejected_by_the_production_build(machine, declaration):
    debug = machine.launch(EnclaveDeclaration.from_names("ledger", debug=True))
    report = machine.launch(declaration).create_report(debug.target_info, bytes(64))
    debug.verify_report(report)
    with pytest.raises(ReportRejected):
        machine.launch(OTHER).verify_report(report)


@pytest.mark.parametrize("elsewhere", [{"index": 1}, {"seed": b"another seed of this test"}])
def test_a_report_of_another_machine_is_rejected(seed, machine, declaration, elsewhere):
    target = machine.launch(OTHER)
    foreign = SimulatedMachine(**{"seed": seed} | elsewhere)
    report = foreign.launch(declaration).create_report(target.target_info, bytes(64))
    with pytest.raises(ReportRejected):
        target.verify_report(report)


def test_any_altered_byte_of_a_report_is_noticed(machine, declaration):
    target = machine.launch(OTHER)
    report = bytes(machine.launch(declaration).create_report(target.target_info, bytes(64)))
    for offset in range(len(report)):
        altered = report[:offset] + bytes([report[offset] ^ 0x40]) + report[offset + 1 :]
        with pytest.raises(ReportRejected):
            target.verify_report(Report.parse(altered))
    target.verify_report(Report.parse(report))


def test_a_microcode_update_makes_old_reports_worthless(machine, declaration):
    target = machine.launch(OTHER)
    report = machine.launch(declaration).create_report(target.target_info, bytes(64))
    target.verify_report(report)
    machine.tcb = DEFAULT_TCB.with_component(0, 12)
    with pytest.raises(ReportRejected, match="CPUSVN"):
        target.verify_report(report)
    target.verify_report(machine.launch(declaration).create_report(target.target_info, bytes(64)))


def test_the_reported_cpu_svn_has_its_components_in_order_as_pck_selection_reads_it():
    assert DEFAULT_TCB.cpu_svn == bytes([11, 11, 2, 2, 255, 255, 1, *[0] * 9])


def test_a_raw_tcb_reaches_a_tcb_only_in_all_components_and_the_pce():
    assert DEFAULT_TCB.reached_by(DEFAULT_TCB.cpu_svn, 13)
    assert not DEFAULT_TCB.reached_by(DEFAULT_TCB.cpu_svn, 12)
    assert DEFAULT_TCB.reached_by(DEFAULT_TCB.with_component(15, 1).cpu_svn, 14)
    for number in range(7):
        lower = DEFAULT_TCB.with_component(number, 0).with_component(15, 9)
        assert not DEFAULT_TCB.reached_by(lower.cpu_svn, 13)


def test_report_data_of_another_size_is_refused(machine, declaration):
    enclave = machine.launch(declaration)
    for size in (0, 32, 63, 65):
        with pytest.raises(FormatError, match="64 bytes"):
            enclave.create_report(enclave.target_info, bytes(size))


def test_a_target_info_of_zeros_makes_ereport_fault(machine, declaration):
    with pytest.raises(NativeError) as error:
        machine.launch(declaration).create_report(TargetInfo.parse(bytes(512)), bytes(64))
    assert error.value.native_code == 0xE017


def test_an_enclave_seals_to_its_signer_at_the_present_tcb(machine, declaration):
    enclave, other = machine.launch(declaration), machine.launch(OTHER)
    key = enclave.seal_key(b"data", isv_svn=1)
    assert key == machine.launch(declaration).seal_key(b"data", isv_svn=1, cpu_svn=machine.tcb.cpu_svn)
    assert key != other.seal_key(b"data", isv_svn=1)
    assert key != enclave.seal_key(b"data", isv_svn=1, cpu_svn=bytes(16))


@pytest.mark.parametrize("components", [(1,) * 15, (1,) * 17, (256, *[0] * 15), (-1, *[0] * 15)])
def test_a_tcb_has_sixteen_components_of_a_byte(components):
    with pytest.raises(FormatError, match="sgx_components"):
        MachineTcb(components, 13)


def test_a_pce_svn_is_a_u16():
    with pytest.raises(FormatError, match="pce_svn"):
        MachineTcb((0,) * 16, 65536)


def test_a_short_seed_is_refused():
    with pytest.raises(ConfigError):
        SimulatedMachine(b"short")
