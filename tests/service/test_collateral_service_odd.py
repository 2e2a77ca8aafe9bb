"""Odd values in what registers and removes platforms, and clocks that are set back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from running_collateral_service import (
    BUILT_FMSPC,
    BUILT_NOW,
    BUILT_ROOTS,
    BuiltUpstream,
    Clock,
    RunningService,
    running_service,
)

USER, ADMIN = "the user's token", "the admin's token"
HASHES = {
    "user_token_hash": hashlib.sha512(USER.encode()).hexdigest(),
    "admin_token_hash": hashlib.sha512(ADMIN.encode()).hexdigest(),
}
PATH = "/sgx/certification/v4"
FORM = {"qe_id": "ab" * 16, "pce_id": "0000", "cpu_svn": "01" * 16, "pce_svn": "0b00", "enc_ppid": "11" * 384}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    store = tmp_path_factory.mktemp("store") / "s"
    with running_service(store, None, BUILT_ROOTS, Clock(BUILT_NOW), mode="offline", **HASHES) as service:
        yield service


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qe_id", "ab " * 16), ("qe_id", "abc"), ("qe_id", ""), ("qe_id", "\0\0"), ("qe_id", "ab" * 131),
        ("pce_id", "00"), ("pce_id", "0 0 "), ("cpu_svn", "01" * 15), ("cpu_svn", "01 " * 10 + "01"),
        ("pce_svn", "0b"), ("pce_svn", "0b 0"), ("pce_svn", "00b"), ("enc_ppid", "11" * 383),
        ("platform_manifest", "abc"), ("platform_manifest", "ab cd"), ("platform_manifest", "ab\n"),
        ("platform_manifest", "zz"), ("platform_manifest", 5), ("qe_id", "\u0663\u0663" * 16),
    ],
)  # fmt: skip
def test_a_value_that_is_not_as_documented_registers_no_platform(
    offline: RunningService, field: str, value: object
) -> None:
    reply = offline.ask(f"{PATH}/platforms", method="POST", headers={"user-token": USER}, body={**FORM, field: value})
    assert (reply.status, reply.json["code"]) == (400, "malformed-input")
    assert field in reply.json["message"]
    assert offline.ask(f"{PATH}/platforms", headers={"admin-token": ADMIN}).json == []


def test_a_field_that_stands_twice_registers_no_platform(offline: RunningService) -> None:
    twice = json.dumps(FORM)[:-1] + ', "pce_id": "0001"}'
    reply = offline.ask(f"{PATH}/platforms", method="POST", headers={"user-token": USER}, body=twice.encode())
    assert (reply.status, reply.json["code"]) == (400, "malformed-input")
    assert "'pce_id' stands twice" in reply.json["message"]


def test_a_store_that_was_moved_away_is_not_made_and_serves_when_it_is_back(tmp_path: Path) -> None:
    store, away, clock = tmp_path / "s.sqlite", tmp_path / "away", Clock(BUILT_NOW)
    away.mkdir()
    tcb = f"{PATH}/tcb?fmspc={BUILT_FMSPC}"
    with running_service(store, BuiltUpstream(), BUILT_ROOTS, clock) as service:
        assert service.ask(tcb).status == 200
        files = list(tmp_path.glob("s.sqlite*"))
        for file in files:
            file.rename(away / file.name)
        clock.now += timedelta(minutes=2)  # so that nothing is answered from memory
        assert service.ask("/readyz").status == 503
        assert not store.exists()
        for file in files:
            (away / file.name).rename(file)
        clock.now += timedelta(minutes=2)
        assert service.ask(tcb).status == 200
        assert service.ask("/readyz").status == 200


def test_one_platform_whatever_the_case_of_its_name(offline: RunningService) -> None:
    for qe_id in ("CDEF" * 8, "cdef" * 8, "CdEf" * 8):
        form = FORM | {"qe_id": qe_id}
        assert offline.ask(f"{PATH}/platforms", method="POST", headers={"user-token": USER}, body=form).status == 200
    admin = {"admin-token": ADMIN}
    assert [one["qe_id"] for one in offline.ask(f"{PATH}/platforms", headers=admin).json] == ["CDEF" * 8]
    for odd in ("", "cd%20ef", "cde", "ab" * 131):
        reply = offline.ask(f"{PATH}/platforms?qeid={odd}", method="DELETE", headers=admin)
        assert (reply.status, reply.json["field"]) == (400, "qeid")
    removed = offline.ask(f"{PATH}/platforms?qeid={'cDEF' * 8}", method="DELETE", headers=admin)
    assert removed.json["removed"] == 1


@pytest.mark.parametrize("name", ["", "ab" * 131, "ab ab", "abc", "zz"])
def test_an_upload_with_an_odd_name_keeps_no_platform(offline: RunningService, name: str) -> None:
    upload = {
        "platforms": [],
        "collaterals": {"certificates": {}, "pck_certs": [{"qe_id": name, "pce_id": "0000", "certs": []}]},
    }
    body = json.dumps(upload).encode()
    reply = offline.ask(f"{PATH}/platformcollateral", method="PUT", headers={"admin-token": ADMIN}, body=body)
    assert (reply.status, reply.json["refused"]) == (400, 1)


class Counted(BuiltUpstream):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def fetch_document(self, key):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().fetch_document(key)


def test_a_clock_that_was_ahead_does_not_end_refreshing(tmp_path: Path) -> None:
    upstream, clock = Counted(), Clock(BUILT_NOW + timedelta(days=15))
    settings = {"fmspcs": (BUILT_FMSPC,), "refresh_look": 0.1}
    with running_service(tmp_path / "s", upstream, BUILT_ROOTS, clock, **settings) as service:
        # All are stored before the clock changes: what is stored after it has been seen at the later reading.
        service.wait_until(lambda: service.ask("/readyz").json["documents"] == 6)
        asked = upstream.asked
        clock.now -= timedelta(days=10)
        service.wait_until(lambda: upstream.asked >= asked + 6)
