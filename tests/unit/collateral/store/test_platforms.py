"""Platforms: their PCK certificates come back as they were kept, and their identifiers stay private."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from confcom.collateral.store import platforms
from confcom.collateral.store.platforms import PlatformTcb, PlatformUpdate, highest, own_tcb
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.store import CollateralStore
from confcom.errors import FormatError, MismatchError, UntrustedRootError, VerificationError
from confcom.pki.chain import TrustRoots, verify_chain
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest
from confcom.simulator.machine import MachineTcb

DAY = timedelta(days=1)
QE_ID = b"\xaa" * 16


@pytest.fixture
def answer(world) -> PckCertificateAnswer:
    leaf, _, chain = world.authority.pck_chain(world.machine).partition(b"-----END CERTIFICATE-----\n")
    return PckCertificateAnswer(leaf + b"-----END CERTIFICATE-----\n", chain, bytes(18))


@pytest.fixture
def extension(world):
    chain = verify_chain(world.authority.pck_chain(world.machine), roots=world.trust_roots, kind="pck", step="test")
    return chain.extension


@pytest.fixture
def raw(world) -> PlatformTcb:
    return PlatformTcb(QE_ID, bytes(2), b"\x07" * 16, 11)


def test_a_certificate_is_found_for_exactly_its_raw_tcb(store, raw, answer, extension, now):
    kept = store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    assert kept.tcbm == extension.tcb.cpu_svn + extension.tcb.pce_svn.to_bytes(2, "little")
    assert (kept.fmspc, kept.ca) == (extension.fmspc, "platform")
    assert (kept.certificate, kept.issuer_chain) == (answer.certificate, answer.issuer_chain)
    assert store.platforms.pck_certificate(raw) == kept
    for other in (
        replace(raw, qe_id=b"\xab" * 16),
        replace(raw, pce_id=b"\x00\x01"),
        replace(raw, cpu_svn=bytes(16)),
        replace(raw, pce_svn=12),
    ):
        assert store.platforms.pck_certificate(other) is None
    assert store.platforms.pck_certificates(QE_ID, bytes(2)) == (kept,)
    assert store.platforms.pck_certificates(b"\x01", bytes(2)) == ()


def certificates(world, *steps: int) -> list[PckCertificateAnswer]:
    """Of the machine at TCBs that are so many steps above its own."""
    tcb, found = world.machine.tcb, []
    for step in steps:
        world.machine.tcb = MachineTcb((tcb.sgx_components[0] + step, *tcb.sgx_components[1:]), tcb.pce_svn)
        leaf, _, chain = world.authority.pck_chain(world.machine).partition(b"-----END CERTIFICATE-----\n")
        found.append(PckCertificateAnswer(leaf + b"-----END CERTIFICATE-----\n", chain, bytes(18)))
    world.machine.tcb = tcb
    return found


def states(store) -> list[tuple[int, str]]:
    """The first component of each TCB at which platforms were met, and when, in this order."""
    query = "SELECT sgx_components, seen FROM platforms JOIN platform_sightings ON platform = number ORDER BY 2, number"
    with store.database.read() as connection:
        rows = connection.exec_driver_sql(query)
        return [(bytes(row[0])[0], row[1]) for row in rows]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_set_of_certificates_is_one_sighting_at_its_highest_tcb(world, store, raw, now, order):
    answers = certificates(world, *order)
    found = [store.platforms.verify(answer, bytes(2)) for answer in answers]
    own = tuple((own_tcb(QE_ID, bytes(2), one.answer), one) for one in found)
    base, at = world.machine.tcb.sgx_components[0], int(now.timestamp())
    for day in range(3):
        update = PlatformUpdate(own, (), highest(found))
        store.platforms.keep([update], seen=now + day * DAY, source="pcs", asked=day == 0)
    # A refresh is no sighting.
    assert states(store) == [(base + 2, at)]
    assert store.platforms.count_certificates() == 3
    store.platforms.keep([PlatformUpdate(own, (), None)], seen=now + 3 * DAY, source="pcs")
    assert states(store) == [(base + 2, at)]


def test_a_refresh_brings_a_platform_to_its_new_tcb_and_does_not_count_as_seen(world, store, raw, now):
    old, new = certificates(world, 0, 1)
    base, at = world.machine.tcb.sgx_components[0], int(now.timestamp())
    store.platforms.add_pck_certificate(raw, old, seen=now, source="pcs")
    for day in (1, 2):
        store.platforms.add_pck_certificate(raw, new, seen=now + day * DAY, source="pcs", asked=False)
    assert states(store) == [(base, at), (base + 1, at)]
    (group,) = store.platforms.groups()
    assert (group.tcb.sgx_components[0], [seen for _, seen in group.seen]) == (base + 1, [at])


def test_a_new_certificate_for_the_same_tcb_replaces_the_old_one(world, store, raw, answer, now):
    old = store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    tcb = world.machine.tcb
    better = MachineTcb((tcb.sgx_components[0] + 1, *tcb.sgx_components[1:]), tcb.pce_svn)
    world.machine.tcb = better
    leaf, _, chain = world.authority.pck_chain(world.machine).partition(b"-----END CERTIFICATE-----\n")
    newer = PckCertificateAnswer(leaf + b"-----END CERTIFICATE-----\n", chain, bytes(18))
    new = store.platforms.add_pck_certificate(raw, newer, seen=now + DAY, source="pcs")
    assert store.platforms.pck_certificate(raw) == new != old
    assert store.platforms.pck_certificates(QE_ID, bytes(2)) == (new, old)
    (group,) = store.platforms.groups()
    assert group.tcb.sgx_components == better.sgx_components
    assert [seen for _, seen in group.seen] == [int((now + DAY).timestamp())]


def at_step(extension, step: int):
    tcb = structs.replace(extension.tcb, pce_svn=extension.tcb.pce_svn + step)
    return structs.replace(extension, tcb=tcb)


def steps(store, extension, at) -> list[int]:
    """By how much each platform is above the TCB of the certificate, as of a time."""
    return sorted(group.tcb.pce_svn - extension.tcb.pce_svn for group in store.platforms.groups(at) for _ in group.seen)


def test_a_platform_is_at_the_tcb_that_it_had_at_the_time(store, extension, now):
    other = structs.replace(extension, ppid=b"\x05" * 16)
    for day, step in ((0, 0), (10, 1), (20, 0), (30, 2)):
        store.observe_platform(at_step(extension, step), seen=now + day * DAY)
    store.observe_platform(other, seen=now + 15 * DAY)
    found = {day: steps(store, extension, now + day * DAY) for day in (-5, 0, 9, 10, 19, 20, 29, 30, 300)}
    assert found == {-5: [0, 0], 0: [0, 0], 9: [0, 0], 10: [0, 1], 19: [0, 1], 20: [0, 0], 29: [0, 0], 30: [0, 2],
                     300: [0, 2]}  # fmt: skip


def test_whenever_it_was_met_the_history_says_at_which_tcb(store, extension, now):
    chance, at, met = random.Random(17), now, []
    for _ in range(60):
        at += timedelta(seconds=chance.choice((1, 3600, 86400, 6 * 86400, 30 * 86400)))
        met.append((at, chance.choice((0, 0, 0, 1, 2))))
        store.observe_platform(at_step(extension, met[-1][1]), seen=at)
        (group,) = store.platforms.groups()
        assert [seen for _, seen in group.seen] == [int(at.timestamp())]
    assert [steps(store, extension, at) for at, _ in met] == [[step] for _, step in met]
    assert [steps(store, extension, at - timedelta(seconds=1)) for at, _ in met[1:]] == [[step] for _, step in met[:-1]]


def test_a_platform_that_stays_adds_a_row_a_week_and_one_when_it_leaves(store, raw, extension, answer, now):
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    for day in range(1, 31):
        store.platforms.saw(raw, answer, seen=now + day * DAY)
    begin, first = int(now.timestamp()), extension.tcb.sgx_components[0]
    assert states(store) == [(first, begin + day * 86400) for day in (0, 7, 14, 21, 28)]
    assert store.platforms.groups()[0].seen[0][1] == begin + 30 * 86400
    store.observe_platform(at_step(extension, 1), seen=now + 31 * DAY)
    assert states(store)[5:] == [(first, begin + day * 86400) for day in (30, 31)]


def test_claims_add_a_row_a_week_for_each_tcb(store, extension, now):
    for turn in range(80):
        store.platforms.observe(at_step(extension, turn % 2), seen=now + turn * timedelta(hours=9), claimed=True)
    assert len(states(store)) == 2 * 4  # each comes every 18 hours, so it counts again after 180
    assert steps(store, extension, datetime.max.replace(tzinfo=UTC)) == [1]


def test_nothing_unverified_is_kept(address, store, raw, answer, now):
    end = len(answer.certificate) - 60
    forged = answer.certificate[:end] + b"A" + answer.certificate[end + 1 :]
    for wrong in (
        replace(answer, certificate=forged),
        replace(answer, certificate=answer.certificate * 2),
        replace(answer, issuer_chain=answer.certificate),
        replace(answer, issuer_chain=b""),
        replace(answer, certificate=b"hello"),
        replace(answer, certificate=b"\xff\n" + answer.certificate),
    ):
        with pytest.raises((FormatError, VerificationError)):
            store.platforms.add_pck_certificate(raw, wrong, seen=now, source="pcs")
    with pytest.raises(MismatchError, match="another PCE"):
        store.platforms.add_pck_certificate(replace(raw, pce_id=b"\x01\x00"), answer, seen=now, source="pcs")
    assert store.platforms.groups() == ()
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    with CollateralStore(address, roots=TrustRoots.intel()) as intel_only:
        assert intel_only.platforms.pck_certificate(raw) is None
        with pytest.raises(UntrustedRootError):
            intel_only.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")


def test_an_older_sighting_does_not_undo_a_newer_one(store, extension, now):
    newer = structs.replace(extension, tcb=structs.replace(extension.tcb, pce_svn=extension.tcb.pce_svn + 1))
    store.observe_platform(newer, seen=now)
    store.observe_platform(extension, seen=now - DAY)
    (group,) = store.platforms.groups()
    assert (group.tcb, [seen for _, seen in group.seen]) == (newer.tcb, [int(now.timestamp())])
    assert (group.fmspc, group.ca, group.tee) == (extension.fmspc, "platform", "sgx")


def test_the_ca_follows_from_the_certificate(store, extension, now):
    desktop = structs.replace(extension, ppid=b"\x01" * 16, platform_instance_id=None, configuration=None)
    store.observe_platform(desktop, seen=now, tee="sgx")
    store.observe_platform(extension, seen=now + DAY, tee="tdx")
    assert [(group.ca, group.tee) for group in store.platforms.groups()] == [
        ("processor", "sgx"),
        ("platform", "tdx"),
    ]


def test_the_registry_does_not_keep_the_ppid(path, world, extension, now):
    store = CollateralStore(path, roots=world.trust_roots)
    store.observe_platform(extension, seen=now)
    assert extension.ppid.hex() not in store.platforms.groups()[0].seen[0][0]
    store.close()
    assert extension.ppid not in path.read_bytes()


def test_a_removed_platform_leaves_nothing_and_the_others_alone(store, world, raw, answer, extension, now):
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    other = PlatformTcb(b"\x77" * 16, raw.pce_id, raw.cpu_svn, raw.pce_svn)
    request = PckCertRequest(raw.cpu_svn, raw.pce_svn, raw.pce_id, other.qe_id)
    store.registrations.put(Registration(request, "waiting", now))
    assert store.platforms.remove(b"\x66" * 16) == 0
    assert store.platforms.remove(raw.qe_id) == 1
    assert store.platforms.pck_certificate(raw) is None
    assert store.platforms.pck_certificates(raw.qe_id, raw.pce_id) == ()
    assert store.platforms.groups() == ()
    assert states(store) == []
    assert store.registrations.count("waiting") == 1
    assert store.platforms.remove(other.qe_id) == 1
    assert store.registrations.count("waiting") == 0
    store.check()


def test_a_platform_is_removed_by_its_id_with_its_certificates(store, raw, answer, now):
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    ((id_, _),) = store.platforms.groups()[0].seen
    assert store.platforms.remove_known("00" * 32) == 0
    assert store.platforms.remove_known(id_) == 1
    assert store.platforms.pck_certificate(raw) is None
    assert store.platforms.groups() == ()


def test_only_those_that_have_not_asked_since_are_removed(store, world, raw, answer, extension, now, monkeypatch):
    monkeypatch.setattr(platforms, "REMOVED_AT_A_TIME", 3)
    for number in range(10):
        request = PckCertRequest(raw.cpu_svn, number, raw.pce_id, bytes([number % 5]) * 16)
        seen = now + timedelta(days=number)
        store.registrations.put(Registration(request, "waiting", now, last_seen=seen))
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    store.observe_platform(structs.replace(extension, ppid=b"\x09" * 16), seen=now)
    # QE_IDs 0 to 4 asked last after 5 to 9 days; two more were met at `now` and never asked.
    assert store.platforms.remove_unseen(now) == 0
    assert store.platforms.remove_unseen(now + timedelta(days=8)) == 3 + 1 + 1
    assert {entry.request.qe_id for entry in store.registrations.page("waiting")} == {b"\x03" * 16, b"\x04" * 16}
    assert store.platforms.groups() == ()


def test_who_asks_is_seen(store, raw, answer, now):
    store.platforms.add_pck_certificate(raw, answer, seen=now, source="pcs")
    request = PckCertRequest(raw.cpu_svn, raw.pce_svn, raw.pce_id, raw.qe_id)
    store.registrations.put(Registration(request, "cached", now))
    later = now + timedelta(days=3)
    store.platforms.saw(raw, answer, seen=later)
    assert store.platforms.asked_for(raw)[1] == later
    assert store.platforms.groups()[0].seen[0][1] == int(later.timestamp())
    assert store.platforms.remove_unseen(later) == 0
