from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from confcom.errors import NativeError, ReportRejected
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.machine import DEFAULT_TCB, SimulatedMachine

CHAIN = b"-----BEGIN CERTIFICATE-----\n" + b"x" * 3500


@pytest.fixture
def qe(machine):
    return QuotingEnclave(machine, CHAIN)


@pytest.fixture
def report(machine, qe, declaration):
    return machine.launch(declaration).create_report(qe.target_info, b"D" * 64)


def signed_by(public_key, signature, message):
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + public_key)
    key.verify(der, message, ec.ECDSA(SHA256()))
    return True


def test_a_quote_has_the_layout_of_version_3(machine, qe, report):
    quote = qe.quote(report)
    assert len(quote) == qe.quote_size == 1052 + len(CHAIN) + 1
    assert quote[:12].hex() == "0300 0200 00000000 0800 0d00".replace(" ", "")
    assert quote[12:28].hex() == "939a7233f79c4ca9940a0db3957f0607"
    assert quote[28:44] == qe.qe_id
    assert quote[44:48] == bytes(4)
    assert quote[48:432] == bytes(report.body)
    assert int.from_bytes(quote[432:436], "little") == len(quote) - 436
    attestation_key = quote[500:564]
    assert signed_by(attestation_key, quote[436:500], quote[:432])
    authentication = quote[1014:1046]
    assert quote[1012:1014] == b"\x20\0"
    assert authentication == bytes(range(32))
    assert quote[884:916] == hashlib.sha256(attestation_key + authentication).digest() == qe.pub_key_id
    assert quote[916:948] == bytes(32)
    assert quote[1046:1048] == b"\5\0"
    assert quote[1052:] == CHAIN + b"\0"
    assert bytes(Quote.parse(quote)) == quote


def test_the_qe_is_intels_by_its_identity(qe, report):
    certified = Quote.parse(qe.quote(report)).signature.certification.qe_report
    assert certified.mr_signer.hex() == "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"
    assert (certified.isv_prod_id, certified.isv_svn, certified.misc_select) == (1, 8, 0)
    assert certified.attributes.flags == 0x15
    assert certified.mr_enclave == qe.target_info.mr_enclave


def test_the_same_report_gives_the_same_quote_in_every_process(seed, qe, report):
    assert QuotingEnclave(SimulatedMachine(seed), CHAIN).quote(report) == qe.quote(report)


def test_the_qe_id_outlives_a_tcb_change_and_the_attestation_key_does_not(machine, seed):
    before = QuotingEnclave(machine, CHAIN)
    machine.tcb = DEFAULT_TCB.with_component(0, 12)
    after = QuotingEnclave(machine, CHAIN)
    assert after.qe_id == before.qe_id
    assert after.pub_key_id != before.pub_key_id
    assert QuotingEnclave(SimulatedMachine(seed, 1), CHAIN).qe_id != before.qe_id


def test_it_signs_nothing_that_was_not_reported_to_it(machine, seed, qe, declaration):
    enclave = machine.launch(declaration)
    elsewhere = enclave.create_report(machine.launch(declaration).target_info, bytes(64))
    foreign = SimulatedMachine(seed, 1).launch(declaration).create_report(qe.target_info, bytes(64))
    genuine = enclave.create_report(qe.target_info, bytes(64))
    forged = replace(genuine, body=declaration.report_body(machine.tcb.cpu_svn, b"?" * 64))
    for report in (elsewhere, foreign, forged, Report.parse(bytes(432))):
        with pytest.raises(ReportRejected):
            qe.quote(report)


def test_the_qes_own_report_binds_nonce_and_quote_for_the_enclave_that_asked(machine, qe, report, declaration):
    enclave = machine.launch(declaration)
    quote = qe.quote(report)
    asked = QeReportInfo(b"N" * 16, enclave.target_info, Report.parse(bytes(432)))
    answered = qe.report_on(quote, asked, report)
    assert bytes(answered)[:528] == bytes(asked)[:528]
    enclave.verify_report(answered.qe_report)
    assert answered.qe_report.body.report_data == hashlib.sha256(b"N" * 16 + quote).digest() + bytes(32)
    assert answered.qe_report.body.mr_enclave == qe.target_info.mr_enclave
    with pytest.raises(ReportRejected):
        machine.launch(replace(declaration, isv_prod_id=9, mr_enclave=b"?" * 32)).verify_report(answered.qe_report)


def test_no_report_of_the_qe_for_a_target_that_cannot_be(qe, report):
    with pytest.raises(NativeError) as error:
        qe.report_on(b"", QeReportInfo(bytes(16), TargetInfo.parse(bytes(512)), report), report)
    assert error.value.native_code == 0xE017


def test_a_quote_costs_little_more_than_its_signature(qe, report):
    report = Report.parse(bytes(report))

    def best() -> float:
        times = []
        for _ in range(200):
            start = time.perf_counter()
            qe.quote(report)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best() < 0.001  # about 40 µs in practice; the bound is far off so that a busy machine passes
