from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from confcom.errors import NativeError, ReportRejected
from confcom.simulator.enclaves import QE3, ProvisioningCertificationEnclave
from confcom.simulator.machine import DEFAULT_TCB, SimulatedMachine


@pytest.fixture
def pce(machine):
    return ProvisioningCertificationEnclave(machine)


def test_it_signs_the_384_bytes_of_a_qe_report_with_the_pck_key(machine, pce):
    report = machine.launch(QE3).create_report(pce.target_info, b"R" * 64)
    signature = pce.certify(report)
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    pck = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + pce.pck_public_key)
    pck.verify(der, bytes(report.body), ec.ECDSA(SHA256()))
    assert len(bytes(report.body)) == 384


def test_it_certifies_no_report_of_another_machine(seed, pce):
    report = SimulatedMachine(seed, 1).launch(QE3).create_report(pce.target_info, bytes(64))
    with pytest.raises(ReportRejected):
        pce.certify(report)


def test_it_certifies_no_enclave_without_the_provisioning_attribute(machine, pce, declaration):
    report = machine.launch(declaration).create_report(pce.target_info, bytes(64))
    with pytest.raises(NativeError, match="provisioning"):
        pce.certify(report)


def test_the_pck_key_belongs_to_machine_and_tcb(seed):
    tcbs = [DEFAULT_TCB, DEFAULT_TCB.with_component(3, 7), type(DEFAULT_TCB)(DEFAULT_TCB.sgx_components, 14)]
    keys = [ProvisioningCertificationEnclave(SimulatedMachine(seed, tcb=tcb)).pck_public_key for tcb in tcbs]
    keys.append(ProvisioningCertificationEnclave(SimulatedMachine(seed, 1)).pck_public_key)
    assert len(set(keys)) == 4
    assert keys[0] == ProvisioningCertificationEnclave(SimulatedMachine(seed)).pck_public_key
