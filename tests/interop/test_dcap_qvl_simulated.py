"""Quotes of the simulated platform before an independent verifier (PyPI's dcap-qvl).

Its collateral is put together here from the published parts, so that no code of ours stands between.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import dcap_qvl
import pytest

from confcom.appraisal.quote import verify_quote
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import DEFAULT_TCB, MachineTcb, PckCa, SimulatedMachine
from confcom.simulator.platform import SimulatedPlatform
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SEED = bytes(range(32))
REPORT_DATA = b"interop".ljust(64, b"\0")

UP, OLD = "UpToDate", "OutOfDate"
CONFIGURATION, HARDENING = "ConfigurationNeeded", "SWHardeningNeeded"
BOTH, OLD_CONFIGURATION = "ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded"

# Platform status and QE status, and what they make together (Intel's convergence table).
CONVERGENCE = {
    (UP, UP): UP,
    (UP, OLD): OLD,
    (HARDENING, UP): HARDENING,
    (HARDENING, OLD): OLD,
    (CONFIGURATION, UP): CONFIGURATION,
    (CONFIGURATION, OLD): OLD_CONFIGURATION,
    (BOTH, UP): BOTH,
    (BOTH, OLD): OLD_CONFIGURATION,
    (OLD, UP): OLD,
    (OLD, OLD): OLD,
    (OLD_CONFIGURATION, UP): OLD_CONFIGURATION,
    (OLD_CONFIGURATION, OLD): OLD_CONFIGURATION,
}


@pytest.fixture
def world():
    return SimulatedWorld.from_seed(SEED, now=NOW)


def quote_of(platform, **declared):
    enclave = platform.machine.launch(EnclaveDeclaration.from_names("interop", **declared))
    return platform.quote(enclave.create_report(platform.init_quote().target_info, REPORT_DATA)).quote


def foreign_form(collateral):
    tcb_info, tcb_signature = inner_object(collateral.tcb_info, "tcbInfo")
    identity, identity_signature = inner_object(collateral.qe_identity, "enclaveIdentity")
    return dcap_qvl.QuoteCollateralV3.from_json(
        json.dumps(
            {
                "pck_crl_issuer_chain": collateral.pck_crl_issuer_chain.decode(),
                "root_ca_crl": collateral.root_ca_crl.hex(),
                "pck_crl": collateral.pck_crl.hex(),
                "tcb_info_issuer_chain": collateral.tcb_info_issuer_chain.decode(),
                "tcb_info": tcb_info,
                "tcb_info_signature": tcb_signature,
                "qe_identity_issuer_chain": collateral.qe_identity_issuer_chain.decode(),
                "qe_identity": identity,
                "qe_identity_signature": identity_signature,
            }
        )
    )


def inner_object(document, name):
    text = document.decode()
    return text[len(f'{{"{name}":') : text.rindex(',"signature":')], json.loads(document)["signature"]


def verify(world, quote, *, now=NOW, collateral=None):
    foreign = foreign_form(world.publish() if collateral is None else collateral)
    return dcap_qvl.verify_with_root_ca(quote, foreign, world.root_der(), int(now.timestamp()))


def refused(world, quote, said=None, *, now=NOW):
    with pytest.raises(ValueError, match=said):
        verify(world, quote, now=now)


def test_a_simulated_quote_is_authentic_below_its_root(world):
    result = verify(world, quote_of(world.platform))
    body = json.loads(result.to_json())["report"]["SgxEnclave"]
    assert result.status == UP
    assert result.advisory_ids == []
    assert bytes(result.ppid) == world.machine.ppid
    assert body["report_data"] == REPORT_DATA.hex()
    assert body["mr_enclave"] == EnclaveDeclaration.from_names("interop").mr_enclave.hex()


def test_it_is_never_authentic_below_intels_root(world):
    quote, collateral = quote_of(world.platform), foreign_form(world.publish())
    with pytest.raises(ValueError, match=r"(?i)certificate|issuer|root|trust"):
        dcap_qvl.verify(quote, collateral, int(NOW.timestamp()))


def test_nor_below_the_root_of_another_seed(world):
    other = SimulatedWorld.from_seed(b"another seed of this test", now=NOW)
    with pytest.raises(ValueError, match=r"(?i)certificate|signature|issuer"):
        dcap_qvl.verify_with_root_ca(
            quote_of(world.platform), foreign_form(world.publish()), other.root_der(), int(NOW.timestamp())
        )


@pytest.mark.parametrize(("statuses", "together"), CONVERGENCE.items(), ids=lambda item: "+".join(item))
def test_every_tcb_status_arrives(world, statuses, together):
    platform_status, qe_status = statuses
    world.authority.set_status(platform_status, ["SIMULATED-SA-1"])
    world.authority.qe_identity.levels[0].status = qe_status
    world.authority.qe_identity.levels[0].advisory_ids = ("SIMULATED-SA-2",)
    quote = quote_of(world.platform)
    result = verify(world, quote)
    assert result.status == together
    assert sorted(result.advisory_ids) == ["SIMULATED-SA-1", "SIMULATED-SA-2"]
    ours = verify_quote(quote, world.publish(), roots=world.trust_roots, now=NOW).tcb
    assert ours.status == result.status
    assert ours.advisory_ids == tuple(sorted(result.advisory_ids))


def test_a_revoked_tcb_is_refused(world):
    world.authority.set_status("Revoked")
    refused(world, quote_of(world.platform), "(?i)revoked")


def test_a_revoked_qe_is_refused(world):
    world.authority.qe_identity.levels[0].status = "Revoked"
    refused(world, quote_of(world.platform), "(?i)revoked")


def test_a_tcb_recovery_is_followed_by_a_microcode_update(world):
    better = DEFAULT_TCB.with_component(0, 12)
    world.authority.raise_tcb(better, advisory_ids=["SIMULATED-SA-3"])
    behind = verify(world, quote_of(world.platform))
    assert (behind.status, behind.advisory_ids) == (OLD, ["SIMULATED-SA-3"])
    world.machine.tcb = better
    assert verify(world, quote_of(world.platform)).status == UP


def test_a_machine_below_every_level_is_refused(world):
    world.machine.tcb = MachineTcb((0,) * 16, 0)
    refused(world, quote_of(world.platform), "No matching TCB level")


def test_client_machines_and_their_ca_work_as_well(world):
    platform = SimulatedPlatform(SimulatedMachine(SEED, 5, pck_ca=PckCa.PROCESSOR), world.authority)
    assert verify(world, quote_of(platform), collateral=platform.collateral()).status == UP


def test_a_second_machine_has_quotes_of_its_own(world):
    machines = SimulatedWorld.from_seed(SEED, now=NOW, machines=2)
    quotes = [quote_of(platform) for platform in machines.platforms]
    assert quotes[0] != quotes[1]
    assert [verify(world, quote).status for quote in quotes] == [UP, UP]


def test_quotes_over_sdk_simulation_reports_chain_to_the_simulated_root():
    world = SimulatedWorld.from_seed(SEED, now=NOW, report_scheme="sdk-simulation")
    quote = quote_of(world.platform)
    assert quote[48:64].hex() == "4820f3376ae6b2f2034d3b7a4b48a778"
    assert verify(world, quote).status == UP


# Every authenticated region of a v3 quote: a byte or two in each, and the check that must notice it.
HEADER = "version|key type|TEE type|vendor|signature is invalid"
REPORT, KEY, QE = "ISV enclave report signature is invalid", "QE report hash mismatch", "invalid for qe_report"
REGIONS = {
    "version": (HEADER, [0]),
    "key type": (HEADER, [2]),
    "tee type": (HEADER, [4]),
    "header SVNs": (REPORT, [8, 10]),
    "vendor": (HEADER, [12]),
    "QE id": (REPORT, [28, 43]),
    "user data": (REPORT, [47]),
    "CPUSVN": (REPORT, [48]),
    "MISCSELECT": (REPORT, [64]),
    "attributes": (REPORT, [96, 104]),
    "MRENCLAVE": (REPORT, [112, 143]),
    "MRSIGNER": (REPORT, [176]),
    "CONFIGID": (REPORT, [240]),
    "ISVPRODID": (REPORT, [304]),
    "ISVSVN": (REPORT, [306]),
    "report data": (REPORT, [368, 431]),
    "signature": (REPORT, [436, 499]),
    "attestation key": (KEY, [500, 563]),
    "QE report": (QE, [564, 612, 628, 692, 820, 822]),
    "QE report data": (QE, [884, 947]),
    "QE report signature": (QE, [948, 1011]),
    "QE authentication data": (KEY, [1014, 1045]),
}


@pytest.mark.parametrize(("said", "offsets"), REGIONS.values(), ids=REGIONS)
def test_one_flipped_bit_anywhere_that_counts_is_refused(world, said, offsets):
    quote = quote_of(world.platform)
    assert verify(world, quote).status == UP
    for offset in offsets:
        for bit in (0x01, 0x80):
            altered = quote[:offset] + bytes([quote[offset] ^ bit]) + quote[offset + 1 :]
            refused(world, altered, said)


@pytest.mark.parametrize("certificate", [0, 1], ids=["PCK certificate", "PCK CA"])
def test_an_altered_certificate_is_refused(world, certificate):
    quote = quote_of(world.platform)
    block = list(re.finditer(rb"(-----BEGIN CERTIFICATE-----\n)(.*?)(-----END)", quote, re.DOTALL))[certificate]
    content = bytearray(b64decode(block[2]))
    for offset in (20, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[offset] ^= 1
        lines = re.sub(rb"(.{64})", rb"\1\n", b64encode(changed)) + b"\n"
        assert len(lines) == len(block[2])
        refused(world, quote[: block.start(2)] + lines + quote[block.end(2) :])


def test_revocations_are_seen(world):
    quote = quote_of(world.platform)
    world.authority.revoke_pck(world.machine)
    refused(world, quote, "(?i)revoked")


def test_revocation_of_one_machine_leaves_the_others(world):
    machines = SimulatedWorld.from_seed(SEED, now=NOW, machines=2)
    machines.authority.revoke_pck(machines.machines[0])
    refused(machines, quote_of(machines.platforms[0]), "(?i)revoked")
    assert verify(machines, quote_of(machines.platforms[1])).status == UP


def test_a_revoked_pck_ca_takes_its_machines_along(world):
    world.authority.revoke_pck_ca(PckCa.PLATFORM)
    refused(world, quote_of(world.platform), "(?i)revoked")


def test_a_revoked_tcb_signing_certificate_is_seen(world):
    world.authority.revoke_tcb_signing()
    refused(world, quote_of(world.platform), "(?i)revoked")


EXPIRABLE = {
    "TCB info": lambda world: world.tcb_info,
    "QE identity": lambda world: world.authority.qe_identity,
    "root CRL": lambda world: world.authority.root.crl,
    "PCK CRL": lambda world: world.authority.pck_cas[PckCa.PLATFORM].crl,
    "PCK certificate": lambda world: world.authority.pck_certificate(world.machine),
    "PCK CA": lambda world: world.authority.pck_cas[PckCa.PLATFORM].own,
    "TCB signing": lambda world: world.authority.tcb_signing,
}


@pytest.mark.parametrize("item", EXPIRABLE.values(), ids=EXPIRABLE)
def test_whatever_expired_is_refused(world, item):
    item(world).expire(NOW)
    refused(world, quote_of(world.platform), "(?i)expired")


def test_collateral_ages_and_can_be_renewed(world):
    quote, later = quote_of(world.platform), NOW + timedelta(days=40)
    refused(world, quote, "(?i)expired", now=later)
    world.publish(later)
    assert verify(world, quote, now=later).status == UP


def test_a_debug_enclave_is_refused_as_one(world):
    refused(world, quote_of(world.platform, debug=True), "(?i)debug")
