"""The attestation store: one chain of revisions, a history of changes, records with filters and an end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.errors import ConfigError, DatabaseError
from confcom.pki.chain import TrustRoots
from confcom.services.attestation import attestation_store
from confcom.services.attestation.attestation_store import (
    CHAIN,
    METADATA,
    AttestationStore,
    AuditRecord,
    AuditWriter,
    RecordFilter,
)
from confcom.services.attestation.signing_keys import make_key
from confcom.tokens.azure import AttestationType, SentPolicy
from confcom.tokens.jws import SigningKey

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SGX, TDX = AttestationType.SGX_ENCLAVE, AttestationType.TDX_VM
FIRST_RELEASE = """
CREATE TABLE policy (kind VARCHAR(16) NOT NULL PRIMARY KEY, jws TEXT NOT NULL, text TEXT NOT NULL, signer BLOB,
  changed DATETIME NOT NULL);
CREATE TABLE policy_signer (thumbprint VARCHAR(40) NOT NULL PRIMARY KEY, certificate BLOB NOT NULL);
CREATE TABLE appraisal (id INTEGER NOT NULL PRIMARY KEY, at DATETIME NOT NULL, kind VARCHAR(16) NOT NULL,
  caller VARCHAR(64) NOT NULL, verdict VARCHAR(16) NOT NULL, reason TEXT NOT NULL, policy_hash VARCHAR(64) NOT NULL,
  evidence_hash VARCHAR(64) NOT NULL, claims TEXT NOT NULL);
CREATE INDEX ix_appraisal_at ON appraisal (at);
INSERT INTO policy VALUES ('SgxEnclave', 'the jws', 'the text', NULL, '2026-11-01 00:00:00.000000');
INSERT INTO appraisal VALUES (7, '2026-11-02 00:00:00.000000', 'SgxEnclave', '192.0.2.1', 'accepted', '', 'p', 'e', '');
"""
"""What releases before the chain of revisions made."""


@pytest.fixture
def store(database_address: str) -> Iterator[AttestationStore]:
    opened = opened_store(database_address)
    yield opened
    opened.close()


def opened_store(address: str | Path) -> AttestationStore:
    """With the newest schema, which in PostgreSQL a command makes."""
    database = Database(DatabaseAddress.parse(address))
    CHAIN.upgrade(database)
    database.close()
    return AttestationStore.open(address)


def _record(number: int, kind: AttestationType = SGX, verdict: str = "accepted") -> AuditRecord:
    return AuditRecord(
        at=NOW + timedelta(minutes=number),
        kind=kind,
        caller=f"192.0.2.{number}",
        verdict=verdict,
        reason="",
        policy_hash="p",
        evidence_hash=f"e{number}",
        claims="",
    )


def test_the_revisions_make_the_tables_that_are_used(store: AttestationStore) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_store_of_the_first_release_is_migrated_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    signer = SigningKey.from_pem(make_key(tmp_path, "ec", NOW, simulated=True).read_bytes(), "").certificate
    with closing(sqlite3.connect(path)) as old, old:
        old.executescript(FIRST_RELEASE)
        old.execute("INSERT INTO policy_signer VALUES (?, ?)", ("t", signer.public_bytes(Encoding.DER)))
    with pytest.raises(ConfigError, match="no schema, or an early one"):
        AttestationStore.open(path, made=False)
    store = AttestationStore.open(path)
    assert store.policy(SGX) == SentPolicy("the jws", "the text", None)
    assert store.signers() == [signer]
    assert [row["id"] for row in store.records()] == [7]
    store.close()
    AttestationStore.open(path, made=False).close()


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_the_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    """Policies and the audit record are for administrators."""
    former = os.umask(umask)
    try:
        AttestationStore.open(tmp_path / "store.sqlite").close()
    finally:
        os.umask(former)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.glob("store.sqlite*")} == {"0o600"}


def test_a_newer_store_is_refused(database_address: str, store: AttestationStore) -> None:
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="'9999' of a newer confcom; this one knows revisions up to") as refused:
        AttestationStore.open(database_address)
    assert "newer version" in refused.value.advice()


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE cookies (id INTEGER)")
    with pytest.raises(ConfigError, match="another program or service: it has the table 'cookies'"):
        AttestationStore.open(path)
    with CollateralStore(tmp_path / "collateral.sqlite", roots=TrustRoots.intel()):
        pass  # its revision is one that this chain has too
    with pytest.raises(ConfigError, match="another program or service: it has the table 'appraisal_policies'"):
        AttestationStore.open(tmp_path / "collateral.sqlite")
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(ConfigError, match="not a database"):
        AttestationStore.open(tmp_path / "text")
    with pytest.raises(ConfigError, match="there is no store"):
        AttestationStore.open(tmp_path / "none", made=False)
    assert _tables(path) == ["cookies"]


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old, old:
        old.executescript(FIRST_RELEASE)
        old.execute("CREATE TABLE signer_change (stands INTEGER)")  # in the way of the second revision
    with pytest.raises(ConfigError, match="cannot be used"):
        AttestationStore.open(path)
    assert _tables(path) == ["appraisal", "policy", "policy_signer", "signer_change"]


def test_replicas_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old, old:
        old.executescript(FIRST_RELEASE)
    failures: list[Exception] = []

    def start() -> None:
        try:
            AttestationStore.open(path).close()
        except ConfigError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    store = AttestationStore.open(path, made=False)
    assert store.policy(SGX) is not None
    store.close()


def test_policies_are_a_history_and_the_newest_is_in_force(store: AttestationStore) -> None:
    store.set_policy(SGX, SentPolicy("one", "1", None), NOW, by="alice")
    store.set_policy(SGX, SentPolicy("two", "2", None), NOW, by="bob")
    assert store.policy(SGX) == SentPolicy("two", "2", None)
    assert store.policy(TDX) is None
    store.set_policy(SGX, None, NOW, by="carol")
    assert store.policy(SGX) is None
    with store.database.read() as connection:
        rows = connection.execute(sa.text("SELECT administrator, jws FROM policy_change ORDER BY id")).all()
    assert rows == [("alice", "one"), ("bob", "two"), ("carol", None)]


def test_a_first_signer_that_was_removed_stays_removed(tmp_path: Path, store: AttestationStore) -> None:
    one, two = (
        SigningKey.from_pem(make_key(tmp_path, kind, NOW, simulated=True).read_bytes(), "").certificate
        for kind in ("rsa", "ec")
    )
    store.first_signer(one, NOW)
    assert not store.change_signer(one, NOW, accepted=False)
    assert store.change_signer(two, NOW, accepted=True)
    assert store.change_signer(one, NOW, accepted=False)
    store.first_signer(one, NOW)
    assert store.signers() == [two]
    assert store.change_signer(one, NOW, accepted=True)
    assert set(store.signers()) == {one, two}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RecordFilter(), ["e3", "e2", "e1", "e0"]),
        (RecordFilter(kind=TDX), ["e2"]),
        (RecordFilter(verdict="denied"), ["e3"]),
        (RecordFilter(caller="192.0.2.1"), ["e1"]),
        (RecordFilter(policy_hash="q"), []),
        (RecordFilter(evidence_hash="e0"), ["e0"]),
        (RecordFilter(evidence_hash="e0' OR '1'='1"), []),
        (RecordFilter(since=NOW + timedelta(minutes=1), until=NOW + timedelta(minutes=3)), ["e2", "e1"]),
        (RecordFilter(since=(NOW + timedelta(minutes=3)).astimezone(), verdict="denied"), ["e3"]),
    ],
)
def test_records_are_filtered(store: AttestationStore, wanted: RecordFilter, found: list[str]) -> None:
    store.record([_record(0), _record(1), _record(2, TDX), _record(3, verdict="denied")])
    assert [row["evidence_hash"] for row in store.records(wanted)] == found
    assert [row["evidence_hash"] for row in store.export(wanted, page=1)] == found


def test_a_search_for_evidence_reads_hashes_in_an_index_that_grows_at_its_end(tmp_path: Path) -> None:
    with closing(AttestationStore.open(tmp_path / "store.sqlite")) as store, store.database.read() as connection:
        indexes = {index["name"]: index["column_names"] for index in sa.inspect(connection).get_indexes("appraisal")}
        assert list(indexes.values()) == [["at", "evidence_hash"]]
        wanted = sa.select(METADATA.tables["appraisal"]).where(*RecordFilter(evidence_hash="e0").conditions())
        search = wanted.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {search}")]
    assert any(step.endswith(f"USING COVERING INDEX {next(iter(indexes))}") for step in plan), plan
    assert "SCAN appraisal" not in plan


def test_a_record_keeps_its_text(store: AttestationStore) -> None:
    texts = ["", "100 % %s :x ?", "'; --", '"\\ \\u0000 {}', "null", "\n\t\x7f", "\u2028 é \U0001f600", "x" * 4096]
    at = NOW + timedelta(microseconds=123_456)
    given = [replace(_record(number), at=at, reason=text, claims=text) for number, text in enumerate(texts)]
    store.record([*given, replace(_record(0), reason="a\0b")])
    last, *kept = store.records()
    assert last["reason"] == "a\ufffdb"
    assert [(row["reason"], row["claims"]) for row in reversed(kept)] == [(text, text) for text in texts]
    assert {row["at"] for row in kept} == {at.replace(tzinfo=None)}


def test_records_end_after_their_time(store: AttestationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestation_store, "FORGOTTEN_AT_ONCE", 2)
    store.record([_record(number) for number in range(5)])
    end = NOW + timedelta(minutes=3)
    assert [store.forget_records(end) for _ in range(3)] == [2, 1, 0]
    assert [row["evidence_hash"] for row in store.records()] == ["e4", "e3"]


def test_a_nonce_is_used_once_and_forgotten_when_it_is_no_longer_good(
    database_address: str, store: AttestationStore
) -> None:
    other = AttestationStore.open(database_address)
    until = NOW + timedelta(minutes=5)
    assert store.use_nonce(b"n", NOW, until)
    assert not other.use_nonce(b"n", NOW, until)
    assert other.use_nonce(b"m", NOW + timedelta(minutes=6), until + timedelta(minutes=6))
    with store.database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM used_nonce")).scalar() == 1
    assert len(store.nonce_secret()) == 32
    assert other.nonce_secret() == store.nonce_secret()
    other.close()


def test_records_are_committed_before_their_callers_are_answered(database_address: str) -> None:
    store, other = opened_store(database_address), AttestationStore.open(database_address)
    writer = AuditWriter(store)

    async def appraisal(number: int) -> None:
        await writer.record(_record(number))
        assert f"e{number}" in [row["evidence_hash"] for row in other.records(limit=1000)]

    async def all_of_them() -> None:
        await appraisal(0)
        await asyncio.gather(*map(appraisal, range(1, 9)))
        # While another process writes they wait, in a thread, and share what comes next.
        with other.database.write():
            waiting = asyncio.gather(*map(appraisal, range(9, 17)))
            await asyncio.sleep(0.05)
            if not store.database.shared:
                assert not waiting.done()
        await waiting
        for number in range(17, 300):
            await writer.record(_record(number % 60))

    asyncio.run(all_of_them())
    assert len(store.records(limit=1000)) == 300
    assert {row["at"] for row in store.records(limit=1000)} == {
        (NOW + timedelta(minutes=n)).replace(tzinfo=None) for n in range(60)
    }
    for one in (writer, store, other):
        one.close()


def test_what_cannot_be_recorded_fails_for_each_that_waits(tmp_path: Path) -> None:
    store = opened_store(tmp_path / "a.sqlite")
    writer = AuditWriter(store)

    async def all_of_them() -> list[object]:
        with closing(sqlite3.connect(tmp_path / "a.sqlite")) as broken, broken:
            broken.execute("ALTER TABLE appraisal RENAME TO away")
        failed = await asyncio.gather(*(writer.record(_record(n)) for n in range(3)), return_exceptions=True)
        with closing(sqlite3.connect(tmp_path / "a.sqlite")) as mended, mended:
            mended.execute("ALTER TABLE away RENAME TO appraisal")
        await writer.record(_record(3))
        return list(failed)

    failed = asyncio.run(all_of_them())
    assert [type(error) for error in failed] == [DatabaseError] * 3
    assert [row["evidence_hash"] for row in store.records()] == ["e3"]
    writer.close()
    store.close()


def _tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection, connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [name for (name,) in rows]


def test_the_newest_records_are_kept(store: AttestationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestation_store, "FORGOTTEN_AT_ONCE", 4)
    store.record([_record(number) for number in range(10)])
    long_ago = NOW - timedelta(days=1)
    assert store.forget_records(long_ago, 10) == 0
    assert [store.forget_records(long_ago, 3) for _ in range(3)] == [4, 3, 0]
    assert [row["evidence_hash"] for row in store.records()] == ["e9", "e8", "e7"]
    assert store.forget_records(long_ago) == 0
