from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from confcom.errors import ReportRejected
from confcom.formats.sgx import AttributeFlags, Attributes, QeReportInfo, Report, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import REPORT_SCHEMES, SdkReportKeyDerivation, SimulatedMachine
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 7, 1, tzinfo=UTC)

DEFAULT_SVN = bytes.fromhex("4820f3376ae6b2f2034d3b7a4b48a778")
KNOWN_SVNS = {
    "default": DEFAULT_SVN,
    "upgraded": bytes.fromhex("5339ae8c93ae8f3ce432db924d0f0733"),
    "downgraded": bytes.fromhex("64ea4f3fa0030c36383c322d4f3a8d4f"),
    "any other": bytes(range(16)),
}
BASE_KEY = bytes.fromhex("ff00" * 8)
TARGET = EnclaveDeclaration(
    mr_enclave=bytes(range(32)),
    mr_signer=bytes(32),
    attributes=Attributes(int(AttributeFlags.INIT | AttributeFlags.MODE64BIT | AttributeFlags.KSS), 7),
    misc_select=1,
    config_id=bytes(range(64)),
    config_svn=0x0203,
)


def cmac(key, message):
    mac = CMAC(AES128(key))
    mac.update(message)
    return mac.finalize()


def sdk_report(declaration, cpu_svn, report_data, *, target=TARGET, body=None):
    """A report as Intel's SDK in simulation mode makes it, from the layout alone."""
    derivation = bytearray(192)
    struct.pack_into("<H", derivation, 0, 3)
    struct.pack_into("<QQ", derivation, 8, target.attributes.flags, target.attributes.xfrm)
    struct.pack_into("<I", derivation, 24, target.misc_select)
    derivation[28:44] = b"THISISOWNEREPOCH"
    derivation[44:76] = target.mr_enclave
    derivation[76:92] = cpu_svn
    struct.pack_into("<H", derivation, 92, target.config_svn)
    derivation[94:158] = target.config_id
    derivation[158:174] = BASE_KEY
    body = bytes(declaration.report_body(cpu_svn, report_data)) if body is None else body
    return body + BASE_KEY + bytes(16) + cmac(cmac(BASE_KEY, bytes(derivation)), body)


@pytest.fixture
def sdk_machine(seed):
    return SimulatedMachine(seed, report_scheme=REPORT_SCHEMES["sdk-simulation"])


@pytest.mark.parametrize("cpu_svn", KNOWN_SVNS.values(), ids=KNOWN_SVNS)
@pytest.mark.parametrize("scheme", REPORT_SCHEMES)
def test_every_machine_takes_reports_of_the_sdk(seed, declaration, cpu_svn, scheme):
    target = SimulatedMachine(seed, report_scheme=REPORT_SCHEMES[scheme]).launch(TARGET)
    target.verify_report(Report.parse(sdk_report(declaration, cpu_svn, b"D" * 64)))


def test_its_own_reports_are_those_of_the_sdk_byte_for_byte(sdk_machine, declaration):
    target = sdk_machine.launch(TARGET).target_info
    report = sdk_machine.launch(declaration).create_report(target, b"D" * 64)
    assert bytes(report) == sdk_report(declaration, DEFAULT_SVN, b"D" * 64)


def test_a_machine_started_for_them_refuses_reports_of_hardware(sdk_machine, machine, declaration):
    target = sdk_machine.launch(TARGET)
    report = machine.launch(declaration).create_report(target.target_info, bytes(64))
    with pytest.raises(ReportRejected, match="not made in simulation mode"):
        target.verify_report(report)


@pytest.mark.parametrize("cpu_svn", KNOWN_SVNS.values(), ids=KNOWN_SVNS)
@pytest.mark.parametrize("scheme", REPORT_SCHEMES)
def test_the_qe_reports_to_an_enclave_at_the_cpu_svn_that_this_enclave_checks_with(seed, cpu_svn, scheme):
    platform = SimulatedWorld.from_seed(seed, now=NOW, report_scheme=scheme).platform
    qe = platform.init_quote().target_info
    report = Report.parse(sdk_report(TARGET, cpu_svn, bytes(64), target=qe))
    asked = QeReportInfo(b"N" * 16, TargetInfo.of(report.body), Report.parse(bytes(432)))
    info = platform.quote(report, qe_report_info=asked).qe_report_info
    body = bytes(info.qe_report.body)
    assert body[:16] == cpu_svn
    assert sdk_report(None, cpu_svn, b"", target=asked.app_enclave_target_info, body=body) == bytes(info.qe_report)


@pytest.mark.parametrize("scheme", REPORT_SCHEMES)
def test_an_altered_body_is_refused(seed, declaration, scheme):
    target = SimulatedMachine(seed, report_scheme=REPORT_SCHEMES[scheme]).launch(TARGET)
    altered = bytearray(sdk_report(declaration, DEFAULT_SVN, bytes(64)))
    altered[64] ^= 1
    with pytest.raises(ReportRejected):
        target.verify_report(Report.parse(bytes(altered)))


def test_the_derivation_has_the_offsets_of_the_sdks_struct():
    assert SdkReportKeyDerivation.size() == 192
    target = TargetInfo.of(TARGET.report_body(bytes(16), bytes(64)))
    key = REPORT_SCHEMES["sdk-simulation"].report_key(None, target, BASE_KEY + bytes(16), DEFAULT_SVN)
    body = bytes(TARGET.report_body(DEFAULT_SVN, bytes(64)))
    assert cmac(key, body) == sdk_report(TARGET, DEFAULT_SVN, bytes(64))[416:]
