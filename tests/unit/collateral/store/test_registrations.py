"""Registered platforms: what is kept, and what a later registration changes."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from confcom.collateral.store import registrations
from confcom.collateral.store.registrations import Place, Registration, Registrations
from confcom.collateral.store.rows import time_of
from confcom.collateral.store.schema import FORMER_REGISTRATIONS
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralUnavailable
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCertRequest, PckCertsRequest

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
REQUEST = PckCertRequest(cpu_svn=bytes(range(16)), pce_svn=258, pce_id=bytes(2), qe_id=b"\xab" * 16)


@pytest.fixture
def register(address: str) -> Iterator[Registrations]:
    with CollateralStore(address, roots=TrustRoots.intel()) as store:
        yield store.registrations


def seen(entry: Registration) -> Registration:
    return replace(entry, last_seen=entry.last_seen or entry.since, began=entry.began or entry.since)


def former(register: Registrations) -> list[tuple[str, dt.datetime, bytes | None]]:
    """State, since when, and replaced manifest of each former registration."""
    with register._database.read() as connection:
        rows = connection.execute(sa.select(FORMER_REGISTRATIONS).order_by(FORMER_REGISTRATIONS.c.id))
        return [(row.state, time_of(row.since), row.platform_manifest) for row in rows]


def waiting(register: Registrations) -> tuple[Registration, ...]:
    return register.page("waiting")


def test_keeps_a_registration_over_a_restart(address: str, register: Registrations) -> None:
    entry = Registration(replace(REQUEST, encrypted_ppid=b"\x01" * 384, platform_manifest=b"m"), "waiting", NOW)
    alone = Registration(PckCertsRequest(bytes(2), None, b"manifest", qe_id=b"\xcd" * 16), "waiting", NOW)
    register.put(entry)
    register.put(alone)

    with CollateralStore(address, roots=TrustRoots.intel()) as again:
        assert waiting(again.registrations) == (seen(entry), seen(alone))
        assert again.registrations.of_platform(b"\xab" * 16, bytes(2)) == (seen(entry),)


def test_an_encrypted_ppid_of_zeros_is_none_and_does_not_replace_a_real_one(register: Registrations) -> None:
    zeros = replace(REQUEST, encrypted_ppid=bytes(384))
    register.put(Registration(zeros, "waiting", NOW))
    assert waiting(register)[0].request.encrypted_ppid is None
    register.put(Registration(replace(REQUEST, encrypted_ppid=b"\x01" * 384), "waiting", NOW))
    register.put(Registration(zeros, "waiting", NOW))

    assert waiting(register)[0].request.encrypted_ppid == b"\x01" * 384


def test_what_a_platform_once_told_stays_known(register: Registrations) -> None:
    register.put(Registration(replace(REQUEST, encrypted_ppid=b"\x01" * 384), "waiting", NOW))
    register.put(Registration(REQUEST, "cached", NOW + dt.timedelta(days=1), bytes(6)))

    (entry,) = register.page("cached", fmspcs=[bytes(6)])
    assert entry.request.encrypted_ppid == b"\x01" * 384
    assert (entry.state, entry.since) == ("cached", NOW + dt.timedelta(days=1))
    assert waiting(register) == ()
    assert register.page("cached", fmspcs=[b"\xff" * 6]) == ()
    assert register.page("cached") == (entry,)


def test_when_a_state_began_stays_known(register: Registrations) -> None:
    day = dt.timedelta(days=1)
    for number, state in enumerate(("waiting", "waiting", "waiting", "cached", "cached", "unavailable")):
        register.put(Registration(REQUEST, state, NOW + number * day))  # type: ignore[arg-type]
    assert former(register) == [("waiting", NOW, None), ("cached", NOW + 3 * day, None)]
    (entry,) = register.page("unavailable")
    assert (entry.began, entry.since) == (NOW + 5 * day, NOW + 5 * day)
    register.put(Registration(REQUEST, "unavailable", NOW + 6 * day))
    (entry,) = register.page("unavailable")
    assert (entry.began, entry.since) == (NOW + 5 * day, NOW + 6 * day)


def test_every_raw_tcb_is_a_registration_of_its_own(register: Registrations) -> None:
    for pce_svn in (1, 2):
        register.put(Registration(replace(REQUEST, pce_svn=pce_svn), "waiting", NOW + dt.timedelta(seconds=pce_svn)))

    assert [entry.request.pce_svn for entry in waiting(register)] == [1, 2]
    assert [entry.request.pce_svn for entry in register.of_platform(b"\xab" * 16, bytes(2))] == [2, 1]


def test_there_is_an_end_to_what_is_taken_in(register: Registrations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "MAX_REGISTRATIONS", 2)
    for pce_svn in (1, 2):
        register.put(Registration(replace(REQUEST, pce_svn=pce_svn), "waiting", NOW))

    with pytest.raises(CollateralUnavailable, match="registered already"):
        register.put(Registration(replace(REQUEST, pce_svn=3), "waiting", NOW))

    register.put(Registration(replace(REQUEST, pce_svn=2), "cached", NOW))  # one that is there is no new one


def test_callers_cannot_make_the_history_of_a_registration_grow_at_will(
    register: Registrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrations, "MAX_FORMER_MANIFESTS", 3)

    def put(state: registrations.State, manifest: bytes, at: dt.timedelta) -> None:
        register.put(Registration(replace(REQUEST, platform_manifest=manifest), state, NOW + at))

    def history() -> list[tuple[str, bytes | None]]:
        return [(state, manifest) for state, _, manifest in former(register)]

    minute, day = dt.timedelta(minutes=1), dt.timedelta(days=1)
    for turn in range(40):
        put("waiting" if turn % 2 else "cached", b"a", turn * minute)
    assert history() == [("cached", None), ("waiting", None)]
    put("cached", b"a", 2 * day)
    put("waiting", b"a", 4 * day)
    assert history() == [("cached", None), ("waiting", None), ("cached", None)]  # of another day
    for turn in range(40):
        put("waiting", b"b" if turn % 2 else b"c", 5 * day + turn * minute)
    assert history()[3:] == [("waiting", b"a"), ("waiting", b"c"), ("waiting", b"b")]
    put("waiting", b"d", 6 * day)  # b is kept already
    # As many as are kept: the oldest without certificates goes, and the platform is registered again.
    put("waiting", b"e", 6 * day)
    assert waiting(register)[0].request.platform_manifest == b"e"
    assert history()[3:] == [("waiting", b"c"), ("waiting", b"b"), ("waiting", b"d")]
    for manifest in (b"f", b"g", b"h", b"i"):
        put("cached", manifest, 6 * day)
    assert history()[3:] == [("cached", b"f"), ("cached", b"g"), ("cached", b"h")]
    # What is made up displaces none that had certificates; the latest of these displaces the oldest.
    for manifest in (b"j", b"k", b"l"):
        put("waiting", manifest, 7 * day)
    assert history()[3:] == [("cached", b"g"), ("cached", b"h"), ("cached", b"i")]
    assert waiting(register)[0].request.platform_manifest == b"l"


def test_a_platform_that_is_offline_for_years_can_be_registered_again(register: Registrations) -> None:
    for year in range(100):
        manifest, at = b"%d" % year, NOW + dt.timedelta(days=365 * year)
        register.put(Registration(replace(REQUEST, platform_manifest=manifest), "waiting", at))
        assert waiting(register)[0].request.platform_manifest == manifest
    assert [manifest for _, _, manifest in former(register)] == [b"%d" % year for year in range(35, 99)]


def test_lists_come_in_pages_that_hold_everything_once(register: Registrations) -> None:
    fmspcs = (bytes(6), b"\xff" * 6, b"\x01" * 6)
    for number in range(25):
        request = replace(REQUEST, qe_id=bytes([number % 5]) * 16, pce_svn=number)
        register.put(Registration(request, "cached", NOW, fmspcs[number % 3]))
    register.put(Registration(REQUEST, "waiting", NOW))

    for named, count in (((), 25), (fmspcs[:2], 17), ((b"\x22" * 6,), 0)):
        found: list[Registration] = []
        after: Place | None = None
        while page := register.page("cached", fmspcs=named, after=after, limit=4):
            assert len(page) <= 4
            found += page
            after = page[-1].place
        assert len(found) == len({entry.place for entry in found}) == count
        assert register.count("cached", fmspcs=named) == count
    later, second = NOW + dt.timedelta(days=365), dt.timedelta(seconds=1)
    due = [len(page) for page in register.pages_due("cached", until=NOW, ahead=later, limit=10)]
    assert due == [10, 10, 5]
    assert list(register.pages_due("cached", until=NOW - second, ahead=later)) == []
    # By a clock that was a year ahead.
    register.put(Registration(REQUEST, "cached", later))
    for until, ahead, pages in (
        (NOW, later, [10, 10, 5, 1]),
        (NOW - second, NOW + second, [1]),
        (NOW, later + second, [10, 10, 5]),
    ):
        assert [len(page) for page in register.pages_due("cached", until=until, ahead=ahead, limit=10)] == pages


def steps(register: Registrations, call: Callable[[], object]) -> int:
    """How many instructions of SQLite's virtual machine a call takes: its work, on a busy machine too."""
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1

    def watch(connection: sqlite3.Connection, _: object, __: object) -> None:
        connection.set_progress_handler(step, 1)

    engine = register._database.engine
    event.listen(engine, "checkout", watch)
    call()
    event.remove(engine, "checkout", watch)
    with register._database.read() as connection:
        connection.connection.driver_connection.set_progress_handler(None, 0)  # type: ignore[union-attr]
    return taken


def test_no_call_takes_longer_because_many_are_registered(path: Path) -> None:
    store = CollateralStore(path, roots=TrustRoots.intel())
    register = store.registrations
    calls: dict[str, Callable[[Registrations], object]] = {
        "put": lambda register: register.put(Registration(replace(REQUEST, qe_id=b"\x77" * 16), "waiting", NOW)),
        "of platform": lambda register: register.of_platform(b"\xab" * 16, bytes(2)),
        "page": lambda register: register.page("waiting", limit=1),
        "page after": lambda register: register.page("waiting", after=Place("", "aa"), limit=1),
        "page of FMSPCs": lambda register: register.page("cached", fmspcs=(b"\x01" * 6,), limit=1),
        "due": lambda register: next(
            register.pages_due("waiting", until=NOW, ahead=NOW + dt.timedelta(days=1), limit=1)
        ),
        "count": lambda register: register.count("waiting"),
    }
    register.put(Registration(REQUEST, "waiting", NOW))
    register.put(Registration(replace(REQUEST, pce_svn=9), "cached", NOW, b"\x01" * 6))
    calls["put"](register)  # so that both are changes of a row that is there
    few = {name: steps(register, lambda call=call: call(register)) for name, call in calls.items()}  # type: ignore[misc]
    with register._database.change() as connection:
        for number in range(5000):
            request = replace(REQUEST, qe_id=number.to_bytes(16, "big"))
            state: registrations.State = "waiting" if number % 2 else "cached"
            registrations.put_registration(connection, Registration(request, state, NOW, bytes(6)))
    many = {name: steps(register, lambda call=call: call(register)) for name, call in calls.items()}  # type: ignore[misc]

    assert min(few.values()) > 0
    assert {name: many[name] for name in calls if many[name] > few[name] + 30} == {}
    store.close()
