"""Quotes of the simulated platform before an independent verifier (PyPI's dcap-qvl).

Its collateral is put together here from the published parts, so that no code of ours stands between.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import dcap_qvl
import pytest
from cryptography import x509

from confcom.appraisal.policy import AcceptTcb
from confcom.appraisal.quote import verify_quote
from confcom.errors import CollateralInvalid, MismatchError
from confcom.formats.sgx import TdReportBody15, TdReportBody15Ex
from confcom.formats.tcb_info import TcbStatus
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.documents import EnclaveTcbLevel, PlatformTcbLevel
from confcom.simulator.enclaves import td_report, td_report_1_5
from confcom.simulator.machine import DEFAULT_TCB, FMSPC, MachineTcb, PckCa, SimulatedMachine
from confcom.simulator.world import SimulatedPlatform, SimulatedWorld

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
    ours = verify_quote(quote, world.publish(), roots=world.trust_roots, now=NOW, any_tcb=True).tcb
    assert ours.status == result.status
    assert ours.advisory_ids == tuple(sorted(result.advisory_ids))


def svns(*values):
    return bytes(values).ljust(16, b"\0")


def td_world():
    """Every status at a level of the platform (TDX component 3), and three levels of the module of version 1."""
    world = SimulatedWorld.from_seed(SEED, now=NOW)
    info, date = world.authority.tcb_info(FMSPC, "tdx"), NOW - timedelta(days=400)
    info.modules = {
        "TDX_01": [
            EnclaveTcbLevel(6, UP, date, ("MODULE-UP",)),
            EnclaveTcbLevel(4, OLD, date, ("MODULE-OLD",)),
            EnclaveTcbLevel(2, "Revoked", date, ("MODULE-REVOKED",)),
        ],
        "TDX_03": [EnclaveTcbLevel(3, UP, date)],
    }
    info.levels = [
        PlatformTcbLevel(DEFAULT_TCB, status, date, (f"PLATFORM-{status}",), (0, 0, svn, *[0] * 13))
        for status, svn in PLATFORM_SVNS.items()
        if svn > 1
    ]
    return world


PLATFORM_SVNS = {UP: 9, HARDENING: 8, CONFIGURATION: 7, BOTH: 6, OLD: 5, OLD_CONFIGURATION: 4, "Revoked": 3, None: 1}
MODULES = {
    "up to date": svns(6, 1, 9),
    "out of date": svns(4, 1, 9),
    "revoked": svns(2, 1, 9),
    "below every level": svns(1, 1, 9),
    "another version": svns(3, 3, 9),
    "another version, below every level": svns(2, 3, 9),
    "unknown version": svns(6, 2, 9),
    "version 0": svns(6, 0, 9),
    "no platform level": svns(6, 1, 2),
    "all zero": bytes(16),
}
PLATFORMS = {str(status): svns(6, 1, svn) for status, svn in PLATFORM_SVNS.items()}


def judge_td(world, launch, current):
    """What the other verifier and ours return; None where one refuses."""
    quote = world.platform.quote_td(td_report_1_5("td", REPORT_DATA, launch, current))
    collateral = world.authority.collateral(FMSPC, world.machine.pck_ca, "tdx")
    try:
        theirs = verify(world, quote, collateral=collateral)
    except ValueError:
        theirs = None
    try:
        ours = verify_quote(quote, collateral, roots=world.trust_roots, now=NOW, any_tcb=True)
    except MismatchError:
        ours = None
    return theirs, ours


@pytest.mark.parametrize(
    ("launch", "current"),
    [*itertools.product(MODULES.values(), repeat=2), *itertools.product(PLATFORMS.values(), repeat=2)],
    ids=lambda svn: svn[:3].hex(),
)
def test_the_tdx_module_that_runs_now_is_judged_as_the_one_at_launch(launch, current):
    world = td_world()
    theirs, ours = judge_td(world, launch, current)
    if theirs is None:
        assert ours is None or ours.tcb_status in (None, TcbStatus.REVOKED)
        return
    assert ours.tcb_status == theirs.status
    assert set(theirs.advisory_ids) <= set(ours.tcb.advisory_ids)
    alone = [judge_td(world, svn, svn)[1].tcb for svn in (launch, current)]
    assert [ours.launch_tcb.status, ours.current_tcb.status] == [tcb.status for tcb in alone]
    assert ours.tcb.advisory_ids == tuple(sorted({name for tcb in alone for name in tcb.advisory_ids}))


@pytest.mark.parametrize(
    "module", ["revoked", "below every level", "another version, below every level", "no platform level"]
)
def test_no_policy_accepts_a_td_whose_running_module_is_revoked_or_below_every_level(module):
    _, ours = judge_td(td_world(), MODULES["up to date"], MODULES[module])
    anything = AcceptTcb(set(TcbStatus) - {TcbStatus.REVOKED})
    assert not all(check.ok for check in anything.check(ours))


def test_a_running_module_that_is_out_of_date_is_accepted_on_purpose_alone():
    _, ours = judge_td(td_world(), MODULES["up to date"], MODULES["out of date"])
    assert ours.tcb_status is TcbStatus.UP_TO_DATE
    found = {check.id: check.ok for check in AcceptTcb([TcbStatus.UP_TO_DATE]).check(ours)}
    assert found == {"tcb-status": True, "tcb-status-current": False, "tdx-module": False}
    assert all(check.ok for check in AcceptTcb([TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE]).check(ours))


def test_a_relaunch_is_accepted_by_its_own_status():
    _, ours = judge_td(td_world(), MODULES["out of date"], MODULES["up to date"])
    assert all(check.ok for check in AcceptTcb([TcbStatus.TD_RELAUNCH_ADVISED]).check(ours))


def extended(body):
    """The body of TDX 1.5 with the further fields of its extended form, all zero."""
    size = TdReportBody15Ex.size() - TdReportBody15.size()
    return TdReportBody15Ex.parse(bytes(body) + bytes(size))


def test_the_extended_body_is_judged_by_its_running_module_too():
    world = td_world()
    collateral = world.authority.collateral(FMSPC, world.machine.pck_ca, "tdx")
    for current, status in (("up to date", UP), ("revoked", "Revoked")):
        body = extended(td_report_1_5("td", REPORT_DATA, MODULES["up to date"], MODULES[current]))
        quote = world.platform.quote_td(body)
        ours = verify_quote(quote, collateral, roots=world.trust_roots, now=NOW, any_tcb=True)
        assert (ours.tcb_status, ours.current_tcb.status, ours.launch_tcb.status) == (status, status, UP)
        if status == UP:
            assert verify(world, quote, collateral=collateral).status == UP


@pytest.mark.parametrize("body", [td_report("td", REPORT_DATA), td_report_1_5("td", REPORT_DATA)])
def test_a_simulated_td_is_authentic_below_its_root(world, body):
    quote = world.platform.quote_td(body)
    collateral = world.authority.collateral(FMSPC, world.machine.pck_ca, "tdx")
    assert verify(world, quote, collateral=collateral).status == UP
    assert verify_quote(quote, collateral, roots=world.trust_roots, now=NOW).tcb_status is TcbStatus.UP_TO_DATE


def test_a_revoked_tcb_is_refused(world):
    world.authority.set_status("Revoked")
    refused(world, quote_of(world.platform), "(?i)revoked")


def test_a_revoked_qe_is_refused(world):
    world.authority.qe_identity.levels[0].status = "Revoked"
    refused(world, quote_of(world.platform), "(?i)revoked")


STATUSES = [str(status) for status in TcbStatus]


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_that_is_not_one_of_enclaves_is_refused(world, status):
    world.authority.qe_identity.levels[1].status = status
    world.authority.qe_identity.levels[0].isv_svn = 9
    quote, collateral = quote_of(world.platform), world.publish()
    try:
        verify(world, quote, collateral=collateral)
    except ValueError:
        assert status == "Revoked" or status in (HARDENING, BOTH) or "Relaunch" in status
    if status in (HARDENING, BOTH) or "Relaunch" in status:
        with pytest.raises(CollateralInvalid, match="tcbStatus"):
            verify_quote(quote, collateral, roots=world.trust_roots, now=NOW, any_tcb=True)
    else:
        verify_quote(quote, collateral, roots=world.trust_roots, now=NOW, any_tcb=True)


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_that_is_not_one_of_tdx_modules_is_refused(status):
    world = td_world()
    world.authority.tcb_info(FMSPC, "tdx").modules["TDX_01"][0].status = status
    theirs = None
    with contextlib.suppress(CollateralInvalid):
        theirs, _ = judge_td(world, MODULES["up to date"], MODULES["up to date"])
        assert status in (UP, OLD, "Revoked")
    assert (theirs is not None) == (status in (UP, OLD))


def test_the_order_of_the_elements_of_the_sgx_extension_says_nothing(world):
    certificate = world.authority.pck_certificate(world.machine)
    (extension,) = certificate.extra
    members = asn1_members(extension.value)
    turned = b"\x30" + x509_length(sum(map(len, members))) + b"".join(members[::-1])
    certificate.extra = (x509.UnrecognizedExtension(extension.oid, turned),)
    quote = quote_of(world.platform)
    assert verify(world, quote).status == UP
    assert verify_quote(quote, world.publish(), roots=world.trust_roots, now=NOW).pck.ppid == world.machine.ppid


def x509_length(size):
    return bytes((size,)) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")


def asn1_members(der):
    """The elements of a SEQUENCE, each with its tag and length."""
    found, rest = [], der[2 + (der[1] & 0x7F if der[1] >= 0x80 else 0) :]
    while rest:
        count = rest[1] & 0x7F if rest[1] >= 0x80 else 0
        size = 2 + count + (int.from_bytes(rest[2 : 2 + count], "big") if count else rest[1])
        found.append(rest[:size])
        rest = rest[size:]
    return found


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
