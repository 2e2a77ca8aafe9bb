from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography import x509

from confcom.collateral.pck_rules import select_pck_certificate
from confcom.errors import CollateralNotFound, ConfigError
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension, SgxType
from confcom.formats.tcb_info import SignedTcbInfo
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.documents import pem
from confcom.simulator.machine import DEFAULT_TCB, PckCa, SimulatedMachine
from confcom.simulator.world import SimulatedAuthority


@pytest.fixture
def authority(seed, now):
    return SimulatedAuthority(seed, now)


def levels(authority, machine):
    return json.loads(authority.collateral_for(machine).tcb_info)["tcbInfo"]["tcbLevels"]


def pck_extension(authority, machine):
    leaf = x509.load_pem_x509_certificates(authority.pck_chain(machine))[0]
    extension = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(PCK_EXTENSION_OID))
    assert not extension.critical
    return PckExtension.parse(extension.value.value)


def test_a_pck_certificate_describes_its_machine(authority, machine):
    extension = pck_extension(authority, machine)
    assert extension.ppid == machine.ppid
    assert extension.fmspc == machine.fmspc
    assert extension.pce_id == b"\0\0"
    assert extension.tcb.sgx_components == machine.tcb.sgx_components
    assert extension.tcb.pce_svn == 13
    assert extension.tcb.cpu_svn == bytes(machine.tcb.sgx_components)
    assert extension.sgx_type == SgxType.SCALABLE
    assert extension.platform_instance_id == machine.platform_instance_id


def test_intels_selection_finds_the_certificate_of_the_machine_by_the_raw_tcb_that_it_reports(authority, machine):
    certificates = []
    for tcb in (machine.tcb, machine.tcb.with_component(0, 10), machine.tcb.with_component(1, 12)):
        machine.tcb = tcb
        leaf = pem(authority.pck_cas[machine.pck_ca].issue(authority.pck_certificate(machine)))
        tcbm = bytes(tcb.sgx_components) + tcb.pce_svn.to_bytes(2, "little")
        certificates.append(PckCertificateAnswer(leaf, b"", tcbm, machine.fmspc, "platform"))
    machine.tcb = DEFAULT_TCB
    raw = machine.launch(EnclaveDeclaration.from_names("x")).create_report(
        machine.launch(EnclaveDeclaration.from_names("y")).target_info, bytes(64)
    )
    found = select_pck_certificate(
        certificates,
        cpu_svn=raw.body.cpu_svn,
        pce_svn=machine.tcb.pce_svn,
        tcb_info=SignedTcbInfo.parse(authority.collateral_for(machine).tcb_info).tcb_info(),
    )
    assert found is certificates[0]


def test_a_client_machine_is_certified_by_the_processor_ca(authority, seed):
    client = SimulatedMachine(seed, pck_ca=PckCa.PROCESSOR)
    extension = pck_extension(authority, client)
    assert extension.platform_instance_id is None
    assert extension.configuration is None
    assert extension.sgx_type == SgxType.STANDARD
    chain = x509.load_pem_x509_certificates(authority.pck_chain(client))
    assert "PCK Processor CA" in chain[1].subject.rfc4514_string()
    assert authority.collateral_for(client).pck_crl != authority.collateral_for(SimulatedMachine(seed)).pck_crl


def test_equal_seeds_and_times_give_equal_collateral(seed, now, machine):
    first, second = (SimulatedAuthority(seed, now).collateral_for(machine) for _ in range(2))
    assert first == second
    assert SimulatedAuthority(b"another seed of this test", now).collateral_for(machine) != first


def test_a_later_renewal_changes_documents_but_no_certificate(authority, machine, seed, now):
    before, chain = authority.collateral_for(machine), authority.pck_chain(machine)
    authority.renew(now + timedelta(days=100))
    after = authority.collateral_for(machine)
    assert after.tcb_info != before.tcb_info
    assert after.pck_crl != before.pck_crl
    assert after.tcb_info_issuer_chain == before.tcb_info_issuer_chain
    late = SimulatedAuthority(seed, now)
    late.renew(now + timedelta(days=100))
    assert late.pck_chain(machine) == authority.pck_chain(machine) == chain


def test_a_tcb_recovery_leaves_machines_behind_that_do_not_follow(authority, machine):
    better = DEFAULT_TCB.with_component(0, 12)
    authority.set_status("ConfigurationNeeded", ["SIMULATED-SA-1"])
    authority.raise_tcb(better, advisory_ids=["SIMULATED-SA-2"])
    found = levels(authority, machine)
    assert [level["tcbStatus"] for level in found] == ["UpToDate", "OutOfDateConfigurationNeeded", "OutOfDate"]
    assert found[1]["advisoryIDs"] == ["SIMULATED-SA-1", "SIMULATED-SA-2"]
    assert found[0]["tcb"]["sgxtcbcomponents"][0]["svn"] == 12
    assert authority.tcb_info().tcb_evaluation_data_number == authority.qe_identity.tcb_evaluation_data_number == 18


def test_a_revoked_level_stays_revoked(authority, machine):
    authority.set_status("Revoked")
    authority.raise_tcb(DEFAULT_TCB.with_component(0, 12), advisory_ids=[])
    assert levels(authority, machine)[1]["tcbStatus"] == "Revoked"


def test_a_machine_gets_another_pck_certificate_after_an_update(authority, machine):
    before = authority.pck_chain(machine)
    machine.tcb = DEFAULT_TCB.with_component(0, 12)
    after = authority.pck_chain(machine)
    first, second = (x509.load_pem_x509_certificates(chain)[0] for chain in (before, after))
    assert first.serial_number != second.serial_number
    assert pck_extension(authority, machine).tcb.sgx_components[0] == 12


def test_revocations_land_on_the_list_of_the_issuer(authority, machine):
    authority.revoke_pck_ca(PckCa.PLATFORM)
    authority.revoke_tcb_signing()
    crl = x509.load_der_x509_crl(authority.collateral_for(machine).root_ca_crl)
    expected = {authority.pck_cas[PckCa.PLATFORM].own.serial_number, authority.tcb_signing.serial_number}
    assert {entry.serial_number for entry in crl} == expected


def test_it_knows_only_the_fmspcs_it_was_told(authority, seed):
    stranger = SimulatedMachine(seed, fmspc=b"\0\0NEW\0")
    with pytest.raises(CollateralNotFound, match="00004e455700"):
        authority.collateral_for(stranger)
    authority.add_tcb_info(stranger.fmspc)
    assert json.loads(authority.collateral_for(stranger).tcb_info)["tcbInfo"]["fmspc"] == "00004E455700"


def test_a_short_seed_is_refused(now):
    with pytest.raises(ConfigError):
        SimulatedAuthority(b"short", now)
