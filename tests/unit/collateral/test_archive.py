"""Archives: a store's memory arrives whole and byte for byte, or the file is refused."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from confcom.collateral import archive as archives
from confcom.collateral.archive import MAX_LINE, Exported, read_archive, write_archive
from confcom.collateral.documents import DocumentKey, take_apart
from confcom.collateral.store.platforms import PlatformTcb
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.store import CollateralStore
from confcom.errors import ClockError, FormatError, UntrustedRootError, VerificationError
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest, PckCertsRequest
from confcom.simulator.machine import FMSPC, MachineTcb

DAY, NOW = timedelta(days=1), datetime(2026, 6, 1, 12, tzinfo=UTC)


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
    assert write_archive(filled, file) == Exported(20, 0, 0, 0, 0)
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


@pytest.mark.parametrize("data", [b"", b"hello", b"hello\n", b"{}\n", b'{"pck_crl":""}'])
def test_what_is_no_archive_is_not_called_a_damaged_one(other, later, data):
    with pytest.raises(FormatError, match="line 1: is not the head of an archive") as error:
        read(other, data, later)
    assert "Give an archive of `confcom collateral export`" in error.value.advice()


def test_it_stops_where_it_was_cut_off(other, archive, later):
    for size in (0, 10, 100, len(archive) // 2, len(archive) - 1, archive.rindex(b'{"end"')):
        with pytest.raises(FormatError):
            read(other, archive[:size], later)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [{"format": "other", "version": 1}, *entries[1:]],
        lambda entries: [{**entries[0], "version": 4}, *entries[1:]],
        lambda entries: entries[1:],
        lambda entries: [*entries[:3], *entries[4:]],
        lambda entries: [*entries, entries[1]],
        lambda entries: [entries[0], {**entries[1], "kind": "nonsense"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "body": "!"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "body": ""}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "seen": []}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "extra": 1}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "ca": "processor", "tee": "sgx"}, *entries[2:]],
        lambda entries: [entries[0], {**entries[1], "seen": entries[1]["seen"] * 100_001}, *entries[2:]],
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
        {"first_seen": "0001-01-01T00:00:00+14:00", "last_seen": "0001-01-01T00:00:00+14:00"},
        {"first_seen": "9999-12-31T23:59:59-12:00", "last_seen": "9999-12-31T23:59:59-12:00"},
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
    seen = [s.seen for key in other.document_keys() for v in other.history(key) for s in v.sightings]
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
    with pytest.raises(VerificationError, match="that has set 17"):
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


# --- platforms ------------------------------------------------------------------------------------------------------


def policy(name: str = "a") -> str:
    entry = {"environment": {"class_id": "3123ec35-8d38-4ea5-87a5-d6c48b567570"}, "name": name}
    payload = json.dumps({"policy_payload": json.dumps({"policy_array": [entry]})}).encode()
    return f"e30.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.c2ln"


def certificate(world, step: int = 0) -> PckCertificateAnswer:
    """Of the machine at a TCB that is so many steps above its own."""
    own = world.machine.tcb
    world.machine.tcb = MachineTcb((own.sgx_components[0] + step, *own.sgx_components[1:]), own.pce_svn)
    leaf, end, chain = world.authority.pck_chain(world.machine).partition(b"-----END CERTIFICATE-----\n")
    world.machine.tcb = own
    return PckCertificateAnswer(leaf + end, chain, b"")


RAW_TCBS = [PlatformTcb(bytes([one]) * 16, bytes(2), bytes([day]) * 16, 7) for one, day in ((1, 0), (1, 3), (2, 1))]


@pytest.fixture
def peopled(filled, world, now) -> CollateralStore:
    """With two platforms, certificates for three raw TCBs, and registrations of every kind."""
    answer, newer = certificate(world), certificate(world, 1)
    for raw in RAW_TCBS:
        filled.platforms.add_pck_certificate(raw, answer, seen=now + raw.cpu_svn[0] * DAY, source="pcs")
    manifest = PckCertsRequest(bytes(2), None, b"manifest", qe_id=b"\x03" * 16)
    ppid = PckCertRequest(bytes(16), 7, bytes(2), b"\x01" * 16, b"\x05" * 384)
    filled.registrations.put(Registration(ppid, "cached", now, FMSPC, now + DAY))
    filled.registrations.put(Registration(manifest, "waiting", now))
    filled.registrations.put(replace(Registration(manifest, "unavailable", now), began=now))
    other = replace(manifest, platform_manifest=b"other")
    filled.registrations.put(Registration(other, "waiting", now + DAY))
    filled.policies.put(policy(), fmspc=FMSPC, default=True)
    raw = PlatformTcb(b"\x01" * 16, bytes(2), bytes(16), 7)
    filled.platforms.add_pck_certificate(raw, newer, seen=now + 8 * DAY, source="pccs")
    filled.platforms.saw(raw, newer, seen=now + 9 * DAY)
    quoted = filled.platforms.verify(newer, bytes(2)).extension
    filled.observe_platform(structs.replace(quoted, ppid=b"\x04" * 16), seen=now, tee="tdx")
    return filled


def exported(store: CollateralStore) -> list[dict]:
    file = io.BytesIO()
    write_archive(store, file, platforms=True)
    return lines(file.getvalue())


def carried(store: CollateralStore) -> tuple[object, ...]:
    found = store.platforms
    return (
        exported(store),
        [store.registrations.page(state) for state in ("waiting", "unavailable", "cached")],
        store.policies.all(),
        [found.groups(NOW + day * DAY) for day in (-1, 0, 4, 7, 8, 9, 100)],
        [found.pck_certificate(raw) for raw in RAW_TCBS],
    )


def test_platforms_cross_too_if_that_is_asked_for(peopled, other, later):
    whole, without = io.BytesIO(), io.BytesIO()
    assert write_archive(peopled, whole, platforms=True) == Exported(20, 1, 3, 2, 9)
    assert write_archive(peopled, without) == Exported(20, 1, 0, 0, 0)
    imported = read_archive(other, io.BytesIO(whole.getvalue()), now=later)
    assert (imported.documents, imported.new, imported.others, imported.new_others) == (20, 20, 15, 15)
    assert carried(other) == carried(peopled)
    again = io.BytesIO()
    write_archive(other, again, platforms=True)
    assert again.getvalue() == whole.getvalue()
    assert read_archive(other, io.BytesIO(whole.getvalue()), now=later).new_others == 0
    assert b"platform" not in without.getvalue().replace(b'"ca":"platform"', b"").replace(
        b'{"platform":"appraisal', b""
    )


def test_what_a_store_says_stays(peopled, other, later, now):
    whole = io.BytesIO()
    write_archive(peopled, whole, platforms=True)
    mine = PckCertRequest(bytes(16), 7, bytes(2), b"\x01" * 16, b"\x09" * 384)
    other.registrations.put(Registration(mine, "unavailable", now))
    other.policies.put(policy("mine"), fmspc=FMSPC, default=True)
    read_archive(other, io.BytesIO(whole.getvalue()), now=later)
    (kept,) = other.registrations.of_platform(b"\x01" * 16, bytes(2))
    assert (kept.state, kept.request.encrypted_ppid) == ("unavailable", b"\x09" * 384)
    assert other.policies.default(FMSPC) == policy("mine")
    assert len(other.policies.all()) == 2


def crossed(origin: CollateralStore, target: CollateralStore, now: datetime) -> None:
    file = io.BytesIO()
    write_archive(origin, file, platforms=True)
    read_archive(target, io.BytesIO(file.getvalue()), now=now)


@pytest.mark.parametrize(
    ("day", "source", "is_latest"), [(-3, "archive", False), (4, "first", False), (12, "first", True)]
)
def test_an_archive_replaces_neither_a_later_chain_nor_an_earlier_source(
    store, other, world, now, later, day, source, is_latest
):
    answer, raw = certificate(world), PlatformTcb(bytes(16), bytes(2), bytes(16), 7)
    before, latest, archived = (replace(answer, issuer_chain=answer.issuer_chain + b"\n" * end) for end in range(3))
    for target, one, when, name in (
        (store, before, 0, "first"),
        (store, latest, 9, "last"),
        (other, archived, day, "archive"),
    ):
        target.platforms.add_pck_certificate(raw, one, seen=now + when * DAY, source=name)
    crossed(other, store, later)
    (kept,) = (line for line in exported(store) if line.get("platform") == "pck-certificate")
    assert kept["issuer_chain"].encode() == (archived if is_latest else latest).issuer_chain
    assert kept["source"] == source
    times = [datetime.fromisoformat(kept[name]) for name in ("first_seen", "last_seen")]
    assert times == [now + min(0, day) * DAY, now + max(9, day) * DAY]


@pytest.mark.parametrize("day", [1, 20])
def test_an_archive_leaves_what_a_raw_tcb_leads_to_also_if_the_clock_was_set_back(store, other, world, now, later, day):
    raw, answers = PlatformTcb(bytes(16), bytes(2), bytes(16), 7), [certificate(world, step) for step in range(4)]
    other.platforms.add_pck_certificate(raw, answers[3], seen=now + day * DAY, source="archive")
    for answer, when in zip(answers, (9, 5, 2), strict=False):
        store.platforms.add_pck_certificate(raw, answer, seen=now + when * DAY, source="pcs")
        assert store.platforms.pck_certificate(raw).certificate == answer.certificate
    crossed(other, store, later)
    assert store.platforms.pck_certificate(raw).certificate == answers[2].certificate
    assert len(store.platforms.pck_certificates(raw.qe_id, raw.pce_id)) == 4


def test_what_was_chosen_last_arrives_also_if_the_clock_was_set_back(store, other, world, now, later):
    raw, answers = PlatformTcb(bytes(16), bytes(2), bytes(16), 7), [certificate(world, step) for step in range(3)]
    for answer, when in zip(answers, (9, 5, 2), strict=True):
        other.platforms.add_pck_certificate(raw, answer, seen=now + when * DAY, source="pcs")
    for _ in range(2):
        crossed(other, store, later)
        assert store.platforms.pck_certificate(raw).certificate == answers[2].certificate


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda line: line | {"extra": 1}, FormatError),
        (lambda line: line | {"qe_id": "xy"}, FormatError),
        (lambda line: line | {"platform": "thing"}, FormatError),
        (lambda line: line | {"last_seen": "2026-06-01T00:00:00"}, FormatError),
        (lambda line: line | {"last_seen": "2036-06-01T00:00:00Z"}, ClockError),
        (lambda line: line | {"certificate": line["issuer_chain"]}, (VerificationError, FormatError)),
        (lambda line: line | {"raw_tcbs": [{"cpu_svn": "00", "pce_svn": 0}]}, FormatError),
    ],
)
def test_a_platform_that_is_not_as_it_should_be_is_refused(peopled, other, later, change, error):
    whole = io.BytesIO()
    write_archive(peopled, whole, platforms=True)
    entries = lines(whole.getvalue())
    index = next(index for index, entry in enumerate(entries) if entry.get("platform") == "pck-certificate")
    entries[index] = {"platform": "pck-certificate"} | change(entries[index])
    with pytest.raises(error):
        read(other, joined(entries), later)
    assert other.platforms.groups() == ()


def test_an_archive_of_before_says_by_its_certificates_when_platforms_were_met(peopled, other, later, now):
    whole = io.BytesIO()
    write_archive(peopled, whole, platforms=True)
    kept = [line for line in lines(whole.getvalue()) if line.get("platform") not in ("choice", "sightings")]
    kept[0]["version"] = 2
    kept = [line | {"raw_tcbs": []} if line.get("platform") == "pck-certificate" else line for line in kept]
    first = next(line for line in kept if line.get("qe_id") == "02" * 16)
    first["raw_tcbs"] = [{"cpu_svn": "01" * 16, "pce_svn": 7}]
    kept[-1]["end"] = len(kept) - 2
    read(other, joined(kept), later)
    assert other.platforms.pck_certificate(PlatformTcb(b"\x02" * 16, bytes(2), b"\x01" * 16, 7)) is not None
    (group,) = other.platforms.groups()
    assert [seen for _, seen in group.seen] == [int((now + 8 * DAY).timestamp())]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("choice", {"certificate": "00" * 32}),
        ("choice", {"since": "2026-06-01T00:00:00"}),
        ("sightings", {"seen": []}),
        ("sightings", {"seen": ["2026-06-01T00:00:00"]}),
        ("sightings", {"seen": ["0001-01-01T00:00:00+14:00"]}),
        ("registration", {"began": "0001-01-01T00:00:00+14:00"}),
        ("sightings", {"id": "00" * 16}),
        ("sightings", {"sgx_components": "00" * 15}),
        ("former-registration", {"state": "lost"}),
        ("former-registration", {"since": "2026-06-01T00:00:00"}),
    ],
)
def test_a_line_of_history_that_is_not_as_it_should_be_is_refused(peopled, other, later, kind, change):
    whole = io.BytesIO()
    write_archive(peopled, whole, platforms=True)
    entries = lines(whole.getvalue())
    index, line = next((number, line) for number, line in enumerate(entries) if line.get("platform") == kind)
    entries[index] = {"platform": kind} | line | change
    with pytest.raises(FormatError, match=f"line {index + 1}"):
        read(other, joined(entries), later)


def test_an_archive_is_of_one_moment(peopled, other, world, later, now):
    class Written(io.BytesIO):
        """While a certificate is written, another process keeps one and chooses it."""

        taken = False

        def write(self, data):
            if b'"pck-certificate"' in data and not self.taken:
                self.taken = True
                raw = PlatformTcb(b"\x07" * 16, bytes(2), bytes(16), 7)
                answer = certificate(world, 2)
                peopled.platforms.add_pck_certificate(raw, answer, seen=now + 10 * DAY, source="pcs")
            return super().write(data)

    before, file = exported(peopled), Written()
    write_archive(peopled, file, platforms=True)
    assert lines(file.getvalue()) == before
    assert len(exported(peopled)) > len(before)
    crossed(peopled, other, later)
    assert carried(other) == carried(peopled)


def test_text_around_issuers_may_be_of_any_encoding(peopled, other, world, later, now):
    before, text = certificate(world, 3), "Herkunft: München\n".encode("latin-1")
    answer = replace(before, issuer_chain=text + before.issuer_chain)
    peopled.platforms.add_pck_certificate(RAW_TCBS[0], answer, seen=now + 10 * DAY, source="pcs")
    collateral = world.publish(now + 6 * DAY)
    parts = take_apart(collateral, fmspc=world.machine.fmspc, ca="platform", tee="sgx")
    noted = [replace(part, issuer_chain=part.issuer_chain and text + part.issuer_chain) for part in parts]
    peopled.add(noted, seen=now + 6 * DAY, source="pcs")
    crossed(peopled, other, later)
    kept = other.platforms.pck_certificate(RAW_TCBS[0])
    assert kept.issuer_chain == "Herkunft: M\ufffdnchen\n".encode() + before.issuer_chain
    key = DocumentKey.qe_identity("sgx")
    assert other.document(key, at=later).body == peopled.document(key, at=later).body


def test_an_archive_cannot_make_the_history_of_a_platform_grow_at_will(peopled, other, later):
    former = {"platform": "former-registration", "qe_id": "03" * 16, "pce_id": "0000", "state": "waiting"}
    entries = exported(peopled)[:1]
    for number in range(200):
        manifest = base64.b64encode(b"made up %d" % number).decode()
        entries.append(former | {"since": f"2026-06-01T00:{number // 60:02}:{number % 60:02}Z"})
        entries.append(entries[-1] | {"platform_manifest": manifest})
    read(other, joined([*entries, {"end": len(entries) - 1}]), later)
    kept = [line for line in exported(other) if line.get("platform") == "former-registration"]
    assert len(kept) == 1 + 64
    assert kept[-1]["platform_manifest"] == base64.b64encode(b"made up 199").decode()


def test_long_lines_are_not_held_until_there_are_many(peopled, other, later, monkeypatch):
    monkeypatch.setattr(archives, "MAX_HELD", 5_000)
    lengths = [len(json.dumps(line)) for line in exported(peopled)]
    before = other.changes()
    crossed(peopled, other, later)
    assert other.changes() - before >= sum(lengths) // 10_000 > 3
    assert carried(other) == carried(peopled)
