"""Reports between neighbours: who made them, for whom, and over what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from confcom.errors import BindingError, FormatError, ReportRejected
from confcom.platforms.interface import verify_local_report
from confcom.simulator.world import SimulatedWorld

DATA = bytes(range(64))


@pytest.mark.promise("M8")
def test_neighbours_prove_themselves_to_each_other(enclave, other_enclave) -> None:
    for attester, verifier in ((enclave, other_enclave), (other_enclave, enclave)):
        report = attester.create_report(verifier.target_info, DATA)
        body = verify_local_report(verifier, bytes(report), DATA)
        assert body == report.body
        assert body.mr_enclave == attester.declaration.mr_enclave


def test_a_report_for_somebody_else_is_rejected(enclave, other_enclave) -> None:
    report = other_enclave.create_report(other_enclave.target_info, DATA)
    with pytest.raises(ReportRejected):
        verify_local_report(enclave, report, DATA)


@pytest.mark.promise("M8")
def test_a_report_from_another_machine_is_rejected(enclave, other_enclave, world) -> None:
    elsewhere = SimulatedWorld.from_seed(b"another machine's seed", now=world.authority.now).machine
    report = elsewhere.launch(other_enclave.declaration).create_report(enclave.target_info, DATA)
    with pytest.raises(ReportRejected):
        verify_local_report(enclave, report, DATA)


@pytest.mark.parametrize("position", [0, 48, 64, 128, 256, 258, 320, 383, 384, 415, 416, 431])
def test_a_report_with_one_bit_changed_is_rejected(position: int, enclave, other_enclave) -> None:
    changed = bytearray(bytes(other_enclave.create_report(enclave.target_info, DATA)))
    changed[position] ^= 1
    with pytest.raises(ReportRejected):
        verify_local_report(enclave, bytes(changed), DATA)


def test_a_report_over_other_data_is_no_answer(enclave, other_enclave) -> None:
    report = other_enclave.create_report(enclave.target_info, bytes(64))
    with pytest.raises(BindingError, match="other data"):
        verify_local_report(enclave, report, DATA)


def test_an_impostor_cannot_take_the_names_of_another(enclave, other_enclave) -> None:
    report = other_enclave.create_report(enclave.target_info, DATA)
    claimed = replace(report, body=replace(report.body, mr_signer=bytes(32)))
    with pytest.raises(ReportRejected):
        verify_local_report(enclave, bytes(claimed), DATA)


@pytest.mark.parametrize("size", [0, 431, 433])
def test_a_report_has_432_bytes(size: int, enclave) -> None:
    with pytest.raises(FormatError, match="432 bytes"):
        verify_local_report(enclave, bytes(size), DATA)
