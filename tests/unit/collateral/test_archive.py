"""Archives: a store's memory arrives whole and byte for byte, or the file is refused."""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from confcom.collateral.archive import MAX_LINE, read_archive, write_archive
from confcom.collateral.documents import DocumentKey, take_apart
from confcom.collateral.store import CollateralStore
from confcom.errors import ClockError, FormatError, UntrustedRootError, VerificationError
from confcom.pki.roots import TrustRoots
from confcom.simulator.machine import FMSPC

DAY = timedelta(days=1)


@pytest.fixture
def filled(store, world, now) -> CollateralStore:
    for day in range(5):
        collateral = world.publish(now + day * DAY)
        for update in ("standard", "early", 17):
            parts = take_apart(collateral, fmspc=world.machine.fmspc, ca="platform", tee="sgx", update=update)
            store.add(parts, seen=now + day * DAY, source=f"pcs {day % 2}")
    return store


@pytest.fixture
def archive(filled) -> bytes:
    file = io.BytesIO()
    assert write_archive(filled, file) == 20
    return file.getvalue()


@pytest.fixture
def other(tmp_path, world):
    with CollateralStore(tmp_path / "other.sqlite", roots=world.trust_roots) as opened:
        yield opened


@pytest.fixture
def later(now):
    return now + 30 * DAY


def read(store, data, now):
    imported = read_archive(store, io.BytesIO(data), now=now)
    return imported.documents, imported.new


def lines(archive: bytes) -> list[dict]:
    return [json.loads(line) for line in archive.splitlines()]


def joined(entries: list[dict]) -> bytes:
    return b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)


def test_everything_arrives(filled, other, archive, later):
    assert read(other, archive, later) == (20, 20)
    assert other.document_keys() == filled.document_keys()
    for key in filled.document_keys():
        ours, theirs = filled.history(key), other.history(key)
        assert [(version.facts, version.expires, version.digest, version.sightings) for version in ours] == [
            (version.facts, version.expires, version.digest, version.sightings) for version in theirs
        ]
        assert [filled.load(version) for version in ours] == [other.load(version) for version in theirs]
    again = io.BytesIO()
    write_archive(other, again)
    assert again.getvalue() == archive


def test_the_same_archive_twice_is_nothing_new(other, archive, later):
    read(other, archive, later)
    assert read(other, archive, later) == (20, 0)


def test_an_archive_of_a_strange_root_is_refused(tmp_path, archive, later):
    with CollateralStore(tmp_path / "intel.sqlite", roots=TrustRoots.intel()) as intel_only:
        with pytest.raises(UntrustedRootError):
            read(intel_only, archive, later)
        assert intel_only.document_keys() == ()


def test_it_stops_where_it_was_cut_off(other, archive, later):
    for size in (0, 10, 100, len(archive) // 2, len(archive) - 1, archive.rindex(b'{"end"')):
        with pytest.raises(FormatError):
            read(other, archive[:size], later)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [{"format": "other", "version": 1}, *entries[1:]],
        lambda entries: [{**entries[0], "version": 2}, *entries[1:]],
        lambda entries: entries[1:],
        lambda entries: [*entries[:3], *entries[4:]],
        lambda entries: [*entries, entries[1]],
        lambda entries: [entries[0], {**entries[1], "kind": "nonsense"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "body": "!"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "body": ""}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "seen": []}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "extra": 1}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "ca": "processor", "tee": "sgx"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "seen": entries[1]["seen"] * 1001}, *entries[2:]],
    ],
)
def test_another_form_is_refused(other, archive, later, change):
    with pytest.raises(FormatError):
        read(other, joined(change(lines(archive))), later)


@pytest.mark.parametrize(
    "seen",
    [
        {"first_seen": "2026-06-02T00:00:00Z", "last_seen": "2026-06-01T00:00:00Z"},
        {"first_seen": "2026-06-01T00:00:00", "last_seen": "2026-06-01T00:00:00"},
        {"served_as": "late"},
        {"served_as": "standard"},
    ],
)
def test_impossible_sightings_are_refused(other, archive, later, seen):
    entries = lines(archive)
    index = next(index for index, entry in enumerate(entries) if entry.get("kind") == "pck-crl")
    entries[index]["seen"][0] |= seen
    with pytest.raises(FormatError):
        read(other, joined(entries), later)


def test_what_a_clock_some_minutes_ahead_saw_counts_as_seen_now(filled, other, archive, now):
    # The store was filled until four days after `now`.
    ours = now + 4 * DAY - timedelta(minutes=7)
    imported = read_archive(other, io.BytesIO(archive), now=ours)
    assert (imported.documents, imported.ahead) == (20, timedelta(minutes=7))
    seen = [s.last_seen for key in other.document_keys() for v in other.history(key) for s in v.sightings]
    assert max(seen) == ours
    assert other.collateral(FMSPC, "platform", "sgx", at=ours).tcb_info


@pytest.mark.parametrize("ours", [datetime(1990, 1, 1, tzinfo=UTC), datetime(2026, 6, 3, tzinfo=UTC)])
def test_an_archive_from_the_future_is_a_clock_problem(other, archive, ours):
    with pytest.raises(ClockError, match=f"clock says {ours:%Y-%m-%dT}"):
        read(other, archive, ours)
    assert other.document_keys() == ()


def test_the_keys_of_all_sets_are_told(filled, other, archive, later):
    assert read_archive(other, io.BytesIO(archive), now=later).keys == set(filled.document_keys())


def test_a_number_that_is_not_the_documents_is_refused(other, archive, later):
    entries = lines(archive)
    for entry in entries:
        for seen in entry.get("seen", ()):
            seen["served_as"] = seen["served_as"].replace("17", "16")
    with pytest.raises(VerificationError, match="whose set is 17"):
        read(other, joined(entries), later)


def test_a_changed_document_is_refused(other, archive, later):
    entries = lines(archive)
    body = bytearray(base64.b64decode(entries[5]["body"]))
    body[len(body) // 2] ^= 1
    entries[5]["body"] = base64.b64encode(body).decode()
    with pytest.raises((VerificationError, FormatError)):
        read(other, joined(entries), later)


def test_a_line_without_end_is_refused_at_the_limit(other, archive, later):
    class Endless(io.RawIOBase):
        taken = 0

        def readline(self, size=-1):
            assert 0 < size <= MAX_LINE + 1
            self.taken += size
            return b"x" * size

    endless = Endless()
    with pytest.raises(FormatError, match="longer than"):
        read_archive(other, endless, now=later)
    assert endless.taken == MAX_LINE + 1


def test_the_key_of_a_line_is_the_documents(other, archive, later):
    read(other, archive, later)
    assert DocumentKey.qe_identity("sgx", 17) in other.document_keys()
