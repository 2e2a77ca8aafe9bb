"""A store that moves from SQLite to another database: whole, compared, repeatable, and never over other data."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from confcom.database.engine import Database, DatabaseAddress
from confcom.database.revisions import copy_database
from confcom.errors import ConfigError, DatabaseError
from confcom.services.attestation.attestation_store import (
    CHAIN,
    METADATA,
    AttestationStore,
    AuditRecord,
)
from confcom.tokens.azure import AttestationType, SentPolicy

NOW = datetime(2020, 11, 21, 9, 30, tzinfo=UTC)
SGX = AttestationType.SGX_ENCLAVE


def record(number: int, reason: str = "") -> AuditRecord:
    at = NOW + timedelta(seconds=number)
    return AuditRecord(at, SGX, "192.0.2.1", "refused", reason, "p", f"e{number}", '{"é": "\\u0000"}')


@pytest.fixture
def source(tmp_path: Path) -> Iterator[AttestationStore]:
    store = AttestationStore.open(tmp_path / "source.sqlite")
    store.record([record(number) for number in range(1203)])
    store.set_policy(SGX, SentPolicy("jws", "text 'é'", None), NOW, by="alice")
    store.set_policy(SGX, None, NOW, by="bob")
    store.publish_keys({"k1": "{}", "k2": "{}"}, NOW, since=NOW - timedelta(hours=1))
    store.revoke_key("k2", NOW)
    store.use_nonce(b"n", NOW, NOW + timedelta(hours=1))
    store.nonce_secret()
    store.forget_records(NOW + timedelta(seconds=3))
    yield store
    store.close()


@pytest.fixture
def target(database_address: str) -> Iterator[Database]:
    database = Database(DatabaseAddress.parse(database_address))
    assert CHAIN.upgrade(database) == ""
    yield database
    database.close()


def content(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in METADATA.sorted_tables
        }


def test_everything_is_there_and_goes_on(source: AttestationStore, target: Database, database_address: str) -> None:
    counted = dict(copy_database(source.database, target, CHAIN))
    assert counted == {
        "appraisal": 1200, "policy_change": 2, "signer_change": 0, "key_change": 3, "key_held": 2, "used_nonce": 1,
        "secret": 1, "lease": 0,
    }  # fmt: skip
    assert content(target) == content(source.database)
    moved = AttestationStore.open(database_address)
    assert moved.nonce_secret() == source.nonce_secret()
    assert not moved.use_nonce(b"n", NOW, NOW)
    assert list(moved.publish_keys({}, NOW, since=NOW)) == ["k1"]
    moved.record([record(5000)])
    assert [row["id"] for row in moved.records(limit=2)] == [1204, 1203]
    moved.set_policy(SGX, SentPolicy("new", "new", None), NOW)
    assert moved.policy(SGX) == SentPolicy("new", "new", None)
    moved.close()


def test_an_interrupted_copy_is_taken_up(source: AttestationStore, target: Database) -> None:
    copying = copy_database(source.database, target, CHAIN)
    next(copying)
    copying.close()  # as an end of the process
    source.record([record(2000)])
    source.publish_keys({"k1": "{}"}, NOW + timedelta(hours=1), since=NOW)
    assert dict(copy_database(source.database, target, CHAIN))["appraisal"] == 1201
    assert content(target) == content(source.database)
    assert dict(copy_database(source.database, target, CHAIN))["appraisal"] == 1201


def test_a_database_with_other_data_is_left_as_it_is(
    source: AttestationStore, target: Database, tmp_path: Path
) -> None:
    other = AttestationStore.open(tmp_path / "other.sqlite")
    other.record([record(number, "other") for number in range(10)])
    other.nonce_secret()
    list(copy_database(other.database, target, CHAIN))
    before = content(target)
    with pytest.raises(ConfigError, match=r"another row in appraisal \(id 4\)") as refused:
        list(copy_database(source.database, target, CHAIN))
    assert "a new database" in refused.value.advice()
    assert content(target) == before
    other.close()


def test_nul_in_a_text_of_sqlite_is_replaced(tmp_path: Path, target: Database) -> None:
    store = AttestationStore.open(tmp_path / "source.sqlite")
    store.record([record(1, "a\0b")])
    store.close()
    with closing(sqlite3.connect(tmp_path / "source.sqlite")) as connection, connection:
        connection.execute("UPDATE appraisal SET claims = 'c' || char(0) || 'd'")
    source = Database(DatabaseAddress.parse(tmp_path / "source.sqlite"))
    list(copy_database(source, target, CHAIN))
    assert [row[-1] for row in content(target)["appraisal"]] == ["c\ufffdd"]
    assert [row[5] for row in content(target)["appraisal"]] == ["a\ufffdb"]
    source.close()


def test_a_source_that_breaks_is_named(tmp_path: Path, source: AttestationStore, target: Database) -> None:
    source.close()
    path = tmp_path / "source.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xff" * 32768
    path.write_bytes(content)
    broken = Database(DatabaseAddress.parse(path))
    with closing(broken), pytest.raises(DatabaseError, match=r"source\.sqlite"):
        list(copy_database(broken, target, CHAIN))
