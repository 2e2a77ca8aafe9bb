"""What a store warns of: expiry, gaps, and platforms that the next TCB promotion leaves behind."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from msgspec import structs

from confcom.collateral.documents import DocumentKey, keys_for, take_apart
from confcom.collateral.store.status import STANDARD, Judged, MissingDocument, fleet_counts, status_json, store_status
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.chain import verify_chain
from confcom.protocols.pcs import TcbSets
from confcom.simulator.machine import MachineTcb

DAY = timedelta(days=1)
STATES = ("current", "falls_behind", "out_of_date")


def printed(status, **how):
    return json.loads("".join(status_json(status, **how)))


def keep(store, world, now, update="standard", parts=slice(None)):
    fmspc = world.machine.fmspc
    documents = take_apart(world.publish(), fmspc=fmspc, ca="platform", tee="sgx", update=update)
    store.add(documents[parts], seen=now, source="pcs")


def fleet(store, now, sets=STANDARD):
    """The state of the one platform, by group."""
    counts = fleet_counts(store, now, sets)
    assert sorted(counts) == sorted((group, state) for group in sets.by_group for state in STATES)
    assert sum(counts.values()) == len(sets.by_group)
    return {group: state for (group, state), count in counts.items() if count}


def meet(store, world, now, **changes):
    chain = verify_chain(world.authority.pck_chain(world.machine), roots=world.trust_roots, kind="pck", step="test")
    store.observe_platform(structs.replace(chain.extension, **changes), seen=now)


def promote(world, component: int = 2) -> None:
    svns = list(world.machine.tcb.sgx_components)
    svns[component] += 1
    world.authority.raise_tcb(MachineTcb(tuple(svns), world.machine.tcb.pce_svn), advisory_ids=["SIMULATED-SA-7"])


def test_a_platform_is_judged_at_the_tcb_that_it_had_at_the_time(store, world, now):
    keep(store, world, now)
    tcb = world.machine.tcb
    low = MachineTcb((tcb.sgx_components[0] - 1, *tcb.sgx_components[1:]), tcb.pce_svn)
    for day, at in ((0, tcb), (5, low), (9, tcb)):
        world.machine.tcb = at
        meet(store, world, now + day * DAY)
    judged = [store_status(store, now + day * DAY).platforms for day in (-1, 0, 4, 5, 8, 9, 20)]
    up, down = TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE
    assert [one.standard.status for (one,) in judged] == [up, up, up, down, down, up, up]


def test_an_empty_store_lacks_every_tcb_info(store, world, now):
    status = store_status(store, now)
    assert (status.documents, status.missing, status.platforms) == ((), (MissingDocument(None, None, "sgx"),), ())
    found = printed(status, min_validity=DAY)["missing"]
    assert found == [{"kind": "tcb-info", "tee": None, "fmspc": None, "ca": None, "update": None, "for_fmspc": None}]
    keep(store, world, now, parts=slice(1, 4))  # an identity and lists judge nothing by themselves
    assert store_status(store, now).missing == status.missing


def test_a_platform_that_is_known_lacks_all_that_an_empty_store_lacks(store, world, now):
    meet(store, world, now)
    missing = {entry.key for entry in store_status(store, now).missing}
    assert missing == set(keys_for(world.machine.fmspc, "platform", "sgx"))


@pytest.mark.parametrize(
    ("year", "words"),
    [(1990, "the clock is behind"), (2050, "the clock is ahead, or nothing was fetched for years")],
)
def test_a_wrong_clock_is_named(store, world, now, year, words):
    keep(store, world, now)
    status = store_status(store, now.replace(year=year))
    assert status.clock_problem.endswith(words)
    assert f"{year}-06-01T12:00:00Z" in status.clock_problem
    assert len(status.not_yet_valid) == (4 if year == 1990 else 0)
    assert printed(status, min_validity=DAY)["clock_problem"] == status.clock_problem
    assert printed(status, min_validity=DAY, clock=False)["clock_problem"] is None


def test_a_clock_within_the_life_of_collateral_is_no_problem(store, world, now):
    keep(store, world, now)
    for days in (-1, 0, 400):
        assert store_status(store, now + days * DAY).clock_problem == ""


def test_it_says_of_each_document_how_long_it_lasts(store, world, now):
    keep(store, world, now)
    status = store_status(store, now + 10 * DAY)
    left = {str(document.key): document.seconds_left / 86400 for document in status.documents}
    assert left == {
        f"SGX TCB info of FMSPC {world.machine.fmspc.hex()} (standard set)": 19,
        "QE identity (standard set)": 19,
        "PCK CRL of the platform CA": 19,
        "root CA CRL": 354,
    }
    assert status.expiring(19 * DAY) == ()
    assert len(status.expiring(19 * DAY + timedelta(seconds=1))) == 3
    assert [document.last_seen for document in status.documents] == [now] * 4
    late = store_status(store, now + 40 * DAY)
    assert [document.seconds_left for document in late.documents[:3]] == [-11 * 86400] * 3


def test_only_what_is_in_force_counts(store, world, now):
    keep(store, world, now)
    world.publish(now + 25 * DAY)
    keep(store, world, now + 25 * DAY)
    assert store_status(store, now + 28 * DAY).expiring(7 * DAY) == ()


def test_a_set_without_its_identity_is_incomplete(store, world, now):
    keep(store, world, now, parts=slice(0, 1))
    fmspc = world.machine.fmspc
    missing = {entry.key for entry in store_status(store, now).missing}
    assert missing == {DocumentKey.qe_identity("sgx"), DocumentKey.pck_crl("platform"), DocumentKey.root_ca_crl()}
    keep(store, world, now)
    assert store_status(store, now).missing == ()
    keep(store, world, now, update="early", parts=slice(0, 1))
    (entry,) = store_status(store, now).missing
    assert (entry.key, entry.fmspc, entry.tee) == (DocumentKey.qe_identity("sgx", "early"), fmspc, "sgx")


def test_a_platform_that_was_met_needs_its_own_documents(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    assert store_status(store, now).missing == ()
    meet(store, world, now, ppid=b"\x01" * 16, fmspc=b"\x02" * 6, platform_instance_id=None, configuration=None)
    missing = {(entry.fmspc, entry.key) for entry in store_status(store, now).missing}
    assert missing == {
        (b"\x02" * 6, DocumentKey.tcb_info("sgx", b"\x02" * 6)),
        (b"\x02" * 6, DocumentKey.pck_crl("processor")),
    }
    assert store_status(store, now, fmspcs=frozenset({world.machine.fmspc})).missing == ()


def test_a_named_fmspc_that_nobody_knows_is_missing(store, world, now):
    keep(store, world, now)
    (entry,) = store_status(store, now, fmspcs=frozenset({b"\x09" * 6})).missing
    assert entry.key == DocumentKey.tcb_info("sgx", b"\x09" * 6)


def test_a_coming_promotion_names_the_platform_and_the_component(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    assert store_status(store, now).falling_behind == ()
    promote(world, component=2)
    keep(store, world, now, update="early")
    (platform,) = store_status(store, now).falling_behind
    assert platform.standard == Judged(17, TcbStatus.UP_TO_DATE)
    assert platform.early == Judged(18, TcbStatus.OUT_OF_DATE)
    assert platform.shortfall is not None
    assert platform.shortfall.name == "SGX component 3"
    svn = world.machine.tcb.sgx_components[2]
    assert (platform.shortfall.found, platform.shortfall.needed) == (svn, svn + 1)
    assert platform.promotion == now + timedelta(weeks=6)
    found = printed(store_status(store, now + DAY), min_validity=DAY)
    assert found["to_restart"] == [platform.group.seen[0][0]]
    assert found["platforms"][0]["promotion_expected"] == "2026-07-13T12:00:00Z"
    assert fleet(store, now) == {"": "falls_behind"}


def test_a_fleet_is_judged_by_the_set_that_is_served(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    promote(world, component=2)
    keep(store, world, now)  # Intel's standard set is 18
    pins = TcbSets.parse(["standard", "e=early", "a=17", "b=18", "c=99"])
    assert fleet(store, now, pins) == {
        "": "out_of_date", "b": "out_of_date", "a": "current", "e": "current", "c": "current",
    }  # fmt: skip
    keep(store, world, now, update="early")
    assert fleet(store, now, TcbSets.parse(["17", "e=early", "s=standard"])) == {
        "": "falls_behind", "e": "out_of_date", "s": "out_of_date",
    }  # fmt: skip


def test_platforms_are_judged_by_what_each_group_gets(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    promote(world, component=2)
    keep(store, world, now)  # Intel's standard set is 18
    frozen = store_status(store, now, sets=TcbSets.parse(["17"]))
    assert (frozen.missing, frozen.platforms[0].out_of_date, frozen.platforms[0].to_restart) == ((), False, False)
    assert frozen.platforms[0].standard == Judged(18, TcbStatus.OUT_OF_DATE)
    found = printed(store_status(store, now, sets=TcbSets.parse(["17", "new=standard", "old=16"])), min_validity=DAY)
    assert found["sets"] == {"": "17", "new": "standard", "old": "16"}
    assert found["platforms"][0]["served"] == {
        "": {"number": 17, "tcb_status": "UpToDate", "state": "current"},
        "new": {"number": 18, "tcb_status": "OutOfDate", "state": "out_of_date"},
        "old": {"number": None, "tcb_status": None, "state": "current"},
    }
    assert found["to_restart"] == [found["platforms"][0]["id"]]
    # A set that is served and was never had is missing, as Intel's standard one would be.
    assert {entry["update"] for entry in found["missing"]} == {16}


def test_a_platform_that_came_back_with_the_new_tcb_is_restarted(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    promote(world, component=2)
    keep(store, world, now, update="early")
    (platform,) = store_status(store, now).platforms
    assert platform.to_restart
    tcb = world.machine.tcb
    world.machine.tcb = MachineTcb(tuple(min(svn + 1, 255) for svn in tcb.sgx_components), tcb.pce_svn)
    meet(store, world, now + DAY)
    (platform,) = store_status(store, now + DAY).platforms
    assert not platform.to_restart
    assert fleet(store, now + DAY) == {"": "current"}


def test_a_platform_that_is_good_enough_does_not_fall_behind(store, world, now):
    keep(store, world, now)
    promote(world)
    keep(store, world, now, update="early")
    world.machine.tcb = MachineTcb(tuple(min(svn + 1, 255) for svn in world.machine.tcb.sgx_components), 99)
    meet(store, world, now)
    (platform,) = store_status(store, now).platforms
    assert not platform.falls_behind
    assert not platform.out_of_date
    assert platform.shortfall is None


def test_who_is_out_of_date_already_does_not_fall_behind_again(store, world, now):
    promote(world)
    keep(store, world, now)
    promote(world, component=3)
    keep(store, world, now, update="early")
    meet(store, world, now)
    (platform,) = store_status(store, now).platforms
    assert platform.out_of_date
    assert not platform.falls_behind
    assert platform.shortfall is not None


def test_after_the_promotion_it_is_no_longer_coming(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    promote(world)
    keep(store, world, now, update="early")
    keep(store, world, now + DAY)
    assert store_status(store, now).falling_behind != ()
    after = store_status(store, now + DAY)
    assert after.falling_behind == ()
    assert after.platforms[0].out_of_date


def test_a_platform_below_every_level_falls_behind_too(store, world, now):
    keep(store, world, now)
    meet(store, world, now)
    promote(world)
    world.tcb_info.levels = world.tcb_info.levels[:1]
    keep(store, world, now, update="early")
    (platform,) = store_status(store, now).falling_behind
    assert platform.early.status is None


@pytest.mark.parametrize("early", [False, True])
def test_machines_read_the_same(store, world, now, early):
    keep(store, world, now)
    meet(store, world, now)
    if early:
        promote(world)
        keep(store, world, now, update="early")
    found = printed(store_status(store, now), min_validity=30 * DAY)
    assert found["now"] == "2026-06-01T12:00:00Z"
    assert len(found["expiring"]) == (5 if early else 3)
    assert len(found["falling_behind"]) == early
    platform = found["platforms"][0]
    assert platform["early"] == {"number": 18 if early else None, "tcb_status": "OutOfDate" if early else None}
    assert (platform["shortfall"] is not None) == early


def test_platforms_at_one_tcb_are_judged_together_and_each_is_listed(store, world, now):
    keep(store, world, now)
    promote(world)
    keep(store, world, now, update="early")
    assert printed(store_status(store, now), min_validity=DAY)["platforms"] == []
    for number in range(5):
        meet(store, world, now + number * DAY, ppid=bytes([number]) * 16, fmspc=bytes([number // 4]) + bytes(5))
    status = store_status(store, now + 5 * DAY)
    assert [(group.group.fmspc[0], len(group.group.seen)) for group in status.platforms] == [(0, 4), (1, 1)]
    found = printed(status, min_validity=DAY)["platforms"]
    assert len({one["id"] for one in found}) == 5
    assert [one["last_seen"] for one in found] == [f"2026-06-0{day}T12:00:00Z" for day in range(1, 6)]
    assert [one["fmspc"] for one in found] == ["000000000000"] * 4 + ["010000000000"]
    meet(
        store, world, now + 6 * DAY, ppid=bytes(16), fmspc=bytes(6), tcb=structs.replace(meeting_tcb(world), pce_svn=99)
    )
    assert [len(group.group.seen) for group in store_status(store, now + 6 * DAY).platforms] == [3, 1, 1]


def meeting_tcb(world):
    return verify_chain(
        world.authority.pck_chain(world.machine), roots=world.trust_roots, kind="pck", step="test"
    ).extension.tcb
