"""The chain of revisions: what it makes on both engines, and how stores from before it are taken over."""

from __future__ import annotations

import gzip
import hashlib
import io
import secrets
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command, op
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from confcom.cli.root import run
from confcom.collateral.archive import write_archive
from confcom.collateral.documents import DocumentKey, take_apart
from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.platforms import PlatformTcb
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.schema import APPLICATION_ID, METADATA, NEWEST
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.errors import CollateralError
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCertRequest, PckCertsRequest
from postgres_server import PostgresServer

NOW, DAY = datetime(2026, 6, 1, 12, tzinfo=UTC), timedelta(days=1)
FORMER = gzip.decompress((Path(__file__).parent / "store_before_revisions.sql.gz").read_bytes()).decode()
"""A store with each kind of row, dumped by the last confcom before the revisions (`user_version` 4)."""
OLDEST = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, tee TEXT NOT NULL, fmspc TEXT NOT NULL,
  ca TEXT NOT NULL, UNIQUE (kind, tee, fmspc, ca)) STRICT;
CREATE TABLE sightings (version INTEGER, served_as TEXT, source TEXT, first_seen INTEGER, last_seen INTEGER);
CREATE TABLE pck_certificates (id INTEGER PRIMARY KEY, qe_id TEXT, pce_id TEXT, first_seen INTEGER);
CREATE TABLE platform_tcbs (qe_id TEXT, pce_id TEXT, cpu_svn TEXT, pce_svn INTEGER, certificate INTEGER);
CREATE TABLE platforms (id TEXT, tee TEXT, fmspc TEXT, ca TEXT, sgx_components BLOB, pce_svn INTEGER, cpu_svn BLOB,
  first_seen INTEGER, last_seen INTEGER);
CREATE TABLE registrations (
    qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, cpu_svn TEXT NOT NULL, pce_svn INTEGER NOT NULL,
    encrypted_ppid BLOB, platform_manifest BLOB, fmspc TEXT NOT NULL, state TEXT NOT NULL,
    since INTEGER NOT NULL, PRIMARY KEY (qe_id, pce_id, cpu_svn, pce_svn)
) STRICT;
"""
"""As far as it matters, version 1, with the table that the service added to it."""


@pytest.fixture
def former(path: Path) -> Path:
    return made(path, FORMER, 4)


def made(path: Path, script: str, version: int) -> Path:
    old = sqlite3.connect(path)
    old.executescript(script)
    old.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version}; PRAGMA journal_mode = WAL;"
    )
    old.close()
    return path


def test_the_newest_revision_is_the_one_that_opening_expects() -> None:
    assert CHAIN.newest == NEWEST


def test_the_chain_makes_the_tables_that_the_store_uses(address: str) -> None:
    assert differences(StoreDatabase(address, create=True)) == []


def test_a_store_that_was_taken_over_has_the_same_tables(former: Path) -> None:
    assert differences(StoreDatabase(former, create=False)) == []


def differences(database: StoreDatabase) -> list[Any]:
    with database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA)
    database.close()
    # SQLite's numbering keys hold no NULL, whether they say so or not.
    return [one for one in found if not (isinstance(one, list) and one[0][0] == "modify_nullable")]


def test_nothing_of_a_former_store_is_lost(former: Path, world: Any) -> None:
    fmspc = world.machine.fmspc
    with CollateralStore(former, roots=world.trust_roots, create=False) as store:
        store.check()
        digests = [
            hashlib.sha256(store.collateral(fmspc, "platform", "sgx", at=NOW + days * DAY).tcb_info).hexdigest()[:16]
            for days in (0, 4, 6)
        ]
        assert digests == ["e9254553469789ab", "e9254553469789ab", "8832289a8390687b"]
        _, version = store.history(DocumentKey.tcb_info("sgx", fmspc))
        seen = [(one.served_as, one.source, one.seen) for one in version.sightings]
        assert seen == [("standard", "pcs", NOW), ("standard", "pccs", NOW + DAY), ("standard", "pcs", NOW + 3 * DAY)]
        raw = PlatformTcb(b"\xaa" * 16, bytes(2), b"\x07" * 16, 11)
        newer, older = store.platforms.pck_certificates(raw.qe_id, raw.pce_id)
        assert store.platforms.pck_certificate(raw) == newer != older
        with store.database.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT tee, min(seen), max(seen) FROM platform_sightings JOIN platforms ON number = platform"
                " GROUP BY tee"
            )
            times = {(tee, first - int(NOW.timestamp()), last - int(NOW.timestamp())) for tee, first, last in rows}
        assert times == {("sgx", 0, 86400), ("tdx", 2 * 86400, 2 * 86400)}
        assert {entry.began for entry in store.registrations.page("cached")} == {NOW}
        registered = [store.registrations.page(state) for state in ("cached", "waiting", "unavailable")]
        assert [[one.request.qe_id for one in page] for page in registered] == [
            [b"\xaa" * 16],
            [b"\xcd" * 16],
            [b"\xee" * 16],
        ]
        assert isinstance(registered[0][0].request, PckCertRequest)
        assert registered[0][0].request.encrypted_ppid == b"\x01" * 384
        assert isinstance(registered[1][0].request, PckCertsRequest)
        assert [store.registrations.count(state) for state in ("cached", "waiting", "unavailable")] == [1, 1, 1]
        claim = store.claims.of_caller("192.0.2.1", PlatformTcb(b"\xbb" * 16, bytes(2), b"\x07" * 16, 11), None)
        assert claim is not None
        assert claim.encrypted_ppid == b"\x02" * 384
        assert store.policies.default(fmspc) == store.policies.all()[0][2]
    with CollateralStore(former, roots=world.trust_roots, create=False) as again:
        assert len(again.platforms.groups()) == 2


def test_intervals_become_sightings(database_address: str, world: Any) -> None:
    met = [("a", "sgx", 9, 0, 5), ("a", "sgx", 10, 6, 8), ("a", "sgx", 9, 9, 12), ("a", "tdx", 9, 3, 3),
           ("b", "sgx", 9, 4, 7), ("b", "sgx", 8, 2, 2)]  # fmt: skip
    database = Database(DatabaseAddress.parse(database_address))
    with database.write() as connection:
        command.upgrade(CHAIN._config(connection), "0001")
        for id_, tee, pce_svn, first, last in met:
            connection.execute(
                sa.text(
                    "INSERT INTO platforms (id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen,"
                    " last_seen) VALUES (:id, :tee, '00606a000000', 'platform', :svns, :pce_svn, :svns, :first, :last)"
                ),
                {"id": id_, "tee": tee, "svns": b"\x01" * 16, "pce_svn": pce_svn, "first": first, "last": last},
            )
    assert CHAIN.upgrade(database) == "0001"
    database.close()
    with CollateralStore(database_address, roots=world.trust_roots) as store:
        store.check()
        with store.database.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT id, tee, pce_svn, seen FROM platform_sightings JOIN platforms ON number = platform"
            )
            found = sorted(tuple(row) for row in rows)
        ends = {(id_, tee, pce_svn, seen) for id_, tee, pce_svn, *times in met for seen in times}
        assert found == sorted(ends)
        now = {(id_, group.tee, group.tcb.pce_svn, at) for group in store.platforms.groups() for id_, at in group.seen}
        assert now == {("a", "sgx", 9, 12), ("a", "tdx", 9, 3), ("b", "sgx", 9, 7)}
        then = {
            (id_, group.tee, group.tcb.pce_svn)
            for group in store.platforms.groups(datetime.fromtimestamp(6, UTC))
            for id_, _ in group.seen
        }
        assert then == {("a", "sgx", 10), ("a", "tdx", 9), ("b", "sgx", 9)}
        assert store.platforms.remove_known("a") == 1


def test_a_migration_that_is_cut_off_changes_nothing_and_two_at_once_are_one(
    database_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, other = (Database(DatabaseAddress.parse(database_address)) for _ in range(2))
    insert = sa.text(
        "INSERT INTO platforms (id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen, last_seen)"
        " VALUES ('a', 'sgx', '00606a000000', 'platform', :svns, :pce_svn, :svns, :first, :last)"
    )
    with database.write() as connection:
        command.upgrade(CHAIN._config(connection), "0001")
        for pce_svn, first, last in ((9, 5, 5), (9, 5, 5), (10, 5, 5), (9, 4, 3)):  # equal times, and ends in disorder
            connection.execute(insert, {"svns": bytes(16), "pce_svn": pce_svn, "first": first, "last": last})
    for cut in range(1, 12):
        execute, done = op.execute, iter(range(cut))

        def until_cut(sql: str, execute: Any = execute, done: Any = done) -> None:
            if next(done, None) is None:
                raise InterruptedError
            execute(sql)

        with monkeypatch.context() as patched:
            patched.setattr(op, "execute", until_cut)
            with pytest.raises(InterruptedError):
                CHAIN.upgrade(database)
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0001"
            assert len(connection.exec_driver_sql("SELECT first_seen FROM platforms").all()) == 4
    with ThreadPoolExecutor(2) as both:
        assert set(both.map(CHAIN.upgrade, (database, other))) == {"0001", NEWEST}
    with database.read() as connection:
        met = "SELECT pce_svn, last_seen FROM current_platforms JOIN platforms ON number = platform"
        assert [tuple(row) for row in connection.exec_driver_sql(met)] == [(10, 5)]
        assert len(connection.exec_driver_sql("SELECT number FROM platforms").all()) == 2
    database.close()
    other.close()


def test_the_former_confcom_refuses_a_store_that_was_taken_over(former: Path, world: Any) -> None:
    CollateralStore(former, roots=world.trust_roots).close()
    raw = sqlite3.connect(former)
    assert raw.execute("PRAGMA user_version").fetchone()[0] > 4
    raw.close()


def test_a_store_of_the_first_version_keeps_its_registrations(path: Path) -> None:
    made(path, OLDEST, 1)
    old = sqlite3.connect(path)
    for number, (ppid, state) in enumerate([(bytes(384), "waiting"), (b"\x01" * 384, "cached"), (None, "cached")]):
        row = ("ab" * 16, "0000", "00" * 16, number, ppid, b"m", "00" * 6, state, int(NOW.timestamp()))
        old.execute("INSERT INTO registrations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    old.commit()
    old.close()

    with CollateralStore(path, roots=TrustRoots.intel(), create=False) as store:
        found = store.registrations.of_platform(b"\xab" * 16, bytes(2))
        ppids = [(entry.request.pce_svn, entry.request.encrypted_ppid) for entry in found]  # type: ignore[union-attr]
        assert sorted(ppids) == [(0, None), (1, b"\x01" * 384), (2, None)]
        assert {entry.last_seen for entry in found} == {NOW}
        assert [store.registrations.count(state) for state in ("waiting", "unavailable", "cached")] == [1, 0, 2]
        store.check()


@pytest.mark.postgres
def test_a_file_is_copied_to_a_server_with_all_that_it_holds(
    former: Path, world: Any, postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with CollateralStore(former, roots=world.trust_roots) as store:
        archive = archived(store)
        before = (store.platforms.groups(), store.changes(), store.registrations.count_all())
    with postgres.database() as name:
        words = ["collateral", "migrate", "--store", postgres.of(name), "--from", str(former)]
        assert run(words) == 0
        assert "sightings: 16 rows copied and compared" in capsys.readouterr().out
        # What an interrupted copy leaves is completed.
        postgres.execute("DELETE FROM sightings WHERE served_as = ''", name)
        postgres.execute("DELETE FROM registrations WHERE state = 'cached'", name)
        assert run(words) == 0
        with CollateralStore(postgres.of(name), roots=world.trust_roots) as copied:
            assert archived(copied) == archive
            assert (copied.platforms.groups(), copied.changes(), copied.registrations.count_all()) == before
            raw = PlatformTcb(b"\xbb" * 16, bytes(2), b"\x07" * 16, 11)
            assert copied.claims.of_caller("192.0.2.1", raw, b"\x02" * 384) is not None
            # Numbers go on after those that were copied.
            kept = copied.platforms.pck_certificates(b"\xaa" * 16, bytes(2))
            copied.platforms.add_pck_certificate(raw, kept[0], seen=NOW, source="pcs")
            copied.observe_platform(copied.platforms.verify(kept[0], bytes(2)).extension, seen=NOW + 9 * DAY)


@pytest.mark.postgres
def test_the_role_of_the_service_may_serve_and_not_lose_history(world: Any, postgres: PostgresServer) -> None:
    role = f"serves_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    with postgres.database() as name:
        migrate = ["collateral", "migrate", "--store", postgres.of(name), "--role", role]
        assert run(migrate) == 0
        postgres.execute(f"GRANT UPDATE ON platforms TO {role}", name)  # as an earlier confcom did
        assert run(migrate) == 0
        with CollateralStore(postgres.of(name, role=role), roots=world.trust_roots) as store:
            fmspc = world.machine.fmspc
            documents = take_apart(world.publish(), fmspc=fmspc, ca="platform", tee="sgx")
            assert store.add(documents, seen=NOW, source="pcs") == 4
            assert store.collateral(fmspc, "platform", "sgx", at=NOW)
            request = PckCertRequest(bytes(16), 1, bytes(2), b"\xaa" * 16)
            store.registrations.put(Registration(request, "waiting", NOW))
            store.registrations.put(Registration(request, "cached", NOW))
            assert store.platforms.remove(b"\xaa" * 16) == 1
            for sql in (
                "DELETE FROM sightings", "UPDATE versions SET number = 1", "DROP TABLE lease",
                "UPDATE platforms SET pce_svn = 1", "UPDATE platform_sightings SET seen = 1",
            ):  # fmt: skip
                with pytest.raises(CollateralError, match=r"permission|owner"):
                    store.write([lambda connection, sql=sql: bool(connection.exec_driver_sql(sql))])  # type: ignore[misc]
        postgres.execute(f"DROP OWNED BY {role}", name)
    postgres.execute(f"DROP ROLE {role}")


def archived(store: CollateralStore) -> bytes:
    file = io.BytesIO()
    write_archive(store, file, platforms=True)
    return file.getvalue()
