"""Registered platforms: what is kept, and what a later registration changes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from confcom.collateral import registrations
from confcom.collateral.registrations import Registration, Registrations
from confcom.collateral.store import CollateralStore
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCertRequest

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
REQUEST = PckCertRequest(cpu_svn=bytes(range(16)), pce_svn=258, pce_id=bytes(2), qe_id=b"\xab" * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "collateral.sqlite"
    CollateralStore(path, roots=TrustRoots.intel()).close()
    return path


@pytest.fixture
def register(path: Path) -> Iterator[Registrations]:
    register = Registrations(path)
    yield register
    register.close()


def test_keeps_a_registration_over_a_restart(path: Path, register: Registrations) -> None:
    entry = Registration(replace(REQUEST, encrypted_ppid=b"\x01" * 384, platform_manifest=b"m"), "waiting", NOW)
    register.put(entry)
    register.close()
    again = Registrations(path)

    assert again.in_state("waiting") == (entry,)
    assert again.of_platform(b"\xab" * 16, bytes(2)) == (entry,)
    again.close()


def test_what_a_platform_once_told_stays_known(register: Registrations) -> None:
    register.put(Registration(replace(REQUEST, encrypted_ppid=b"\x01" * 384), "waiting", NOW))
    register.put(Registration(REQUEST, "cached", NOW + dt.timedelta(days=1), bytes(6)))

    (entry,) = register.of_fmspcs([bytes(6)])
    assert entry.request.encrypted_ppid == b"\x01" * 384
    assert (entry.state, entry.since) == ("cached", NOW + dt.timedelta(days=1))
    assert register.in_state("waiting") == ()
    assert register.of_fmspcs([b"\xff" * 6]) == ()
    assert register.of_fmspcs([]) == (entry,)


def test_every_raw_tcb_is_a_registration_of_its_own(register: Registrations) -> None:
    for pce_svn in (1, 2):
        register.put(Registration(replace(REQUEST, pce_svn=pce_svn), "waiting", NOW + dt.timedelta(seconds=pce_svn)))

    assert [entry.request.pce_svn for entry in register.in_state("waiting")] == [1, 2]
    assert [entry.request.pce_svn for entry in register.of_platform(b"\xab" * 16, bytes(2))] == [2, 1]


def test_there_is_an_end_to_what_is_taken_in(register: Registrations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "MAX_REGISTRATIONS", 2)
    for pce_svn in (1, 2):
        register.put(Registration(replace(REQUEST, pce_svn=pce_svn), "waiting", NOW))

    with pytest.raises(CollateralUnavailable, match="registered already"):
        register.put(Registration(replace(REQUEST, pce_svn=3), "waiting", NOW))


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(CollateralNotFound):
        Registrations(tmp_path / "nowhere.sqlite")
