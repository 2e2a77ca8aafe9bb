"""Files that are not a store, or no longer one: a clear error with advice, never a traceback."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from confcom.collateral.documents import DocumentKey, take_apart
from confcom.collateral.sources import is_store
from confcom.collateral.store.database import StoreDatabase, unfinished_store
from confcom.collateral.store.schema import APPLICATION_ID, NEWEST
from confcom.collateral.store.status import store_status
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralError, CollateralNotFound, CollateralUnavailable, ConfcomError


@pytest.fixture
def filled(path: Path, world, now) -> Path:
    with CollateralStore(path, roots=world.trust_roots) as store:
        for ca in ("platform", "processor"):
            collateral = world.pcs.fetch(world.machine.fmspc, ca, "sgx")
            parts = take_apart(collateral, fmspc=world.machine.fmspc, ca=ca, tee="sgx")
            store.add(parts, seen=now, source="x")
    return path


def use(path: Path, world, now) -> None:
    with CollateralStore(path, roots=world.trust_roots, create=False) as store:
        store.check()
        store_status(store, now)
        store.collateral(world.machine.fmspc, "platform", "sgx", at=now)


def test_a_store_is_made_only_when_that_was_asked_for(path):
    with pytest.raises(CollateralNotFound, match="there is no collateral store"):
        StoreDatabase(path, create=False)
    assert not path.exists()
    StoreDatabase(path, create=True).close()
    assert is_store(str(path))


def test_a_folder_that_cannot_hold_it_is_named(tmp_path):
    with pytest.raises(CollateralError, match="cannot be made") as caught:
        StoreDatabase(tmp_path / "missing" / "store.sqlite", create=True)
    assert "folder" in caught.value.advice()


def test_a_name_that_no_file_can_have_is_reported(tmp_path):
    for create in (True, False):
        with pytest.raises(CollateralError, match="cannot be used: File name too long"):
            StoreDatabase(tmp_path / ("x" * 300), create=create)


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_not_a_store(path, content):
    path.write_bytes(content)
    with pytest.raises(CollateralError) as caught:
        StoreDatabase(path, create=True)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_folder_is_not_a_store(tmp_path):
    with pytest.raises(CollateralError):
        StoreDatabase(tmp_path, create=True)


def test_another_database_is_left_alone(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (text)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(CollateralError, match="not a collateral store"):
        StoreDatabase(path, create=True)
    assert path.read_bytes() == before


def test_a_store_of_the_future_is_left_alone(filled):
    future = sqlite3.connect(filled)
    future.execute("UPDATE alembic_version SET version_num = '9999'")
    future.commit()
    future.close()
    with pytest.raises(CollateralError, match="newer confcom"):
        StoreDatabase(filled, create=True)


def test_a_store_of_the_past_is_brought_up_to_date(path):
    old = sqlite3.connect(path)
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.close()
    database = StoreDatabase(path, create=False)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == NEWEST
        assert connection.exec_driver_sql("SELECT count(*) FROM versions").scalar() == 0
    database.close()


def test_damage_anywhere_is_an_error_with_advice(filled, world, now, tmp_path):
    healthy = filled.read_bytes()
    chance = random.Random(3)
    errors = []
    for number in range(100):
        damaged = bytearray(healthy)
        start = chance.randrange(len(damaged) - 64)
        damaged[start : start + 64] = chance.randbytes(64)
        victim = tmp_path / f"victim{number}.sqlite"
        victim.write_bytes(damaged)
        try:
            use(victim, world, now)
        except ConfcomError as error:
            errors.append(error)
    # The rest fell into pages that hold nothing.
    assert len(errors) > 5
    assert all(isinstance(error, CollateralError) and "Move the file" in error.advice() for error in errors)


def test_one_changed_byte_of_a_document_is_found(filled, world, now):
    body = world.publish().pck_crl
    content = bytearray(filled.read_bytes())
    content[content.index(body) + len(body) // 2] ^= 1
    filled.write_bytes(content)
    with CollateralStore(filled, roots=world.trust_roots) as store:
        with pytest.raises(CollateralError, match="have changed"):
            store.collateral(world.machine.fmspc, "platform", "sgx", at=now)
        with pytest.raises(CollateralError, match="have changed"):
            store.check()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_off_says_how_to_go_on(filled, world, now, share):
    whole = filled.read_bytes()
    filled.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CollateralError, match="damaged") as caught:
        use(filled, world, now)
    assert "import the last export" in caught.value.advice()


def test_rows_that_we_did_not_write_are_damage(filled, world):
    strange = sqlite3.connect(filled)
    strange.execute("UPDATE documents SET kind = 'nonsense'")
    strange.commit()
    strange.close()
    with CollateralStore(filled, roots=world.trust_roots) as store, pytest.raises(CollateralError, match="damaged"):
        store.document_keys()


def test_times_out_of_range_are_damage(filled, world):
    strange = sqlite3.connect(filled)
    strange.execute("UPDATE versions SET issue_date = 9223372036854775807")
    strange.commit()
    strange.close()
    with CollateralStore(filled, roots=world.trust_roots) as store, pytest.raises(CollateralError, match="damaged"):
        store.history(DocumentKey.root_ca_crl())


def test_a_writer_that_never_ends_is_waited_for_in_vain(filled, world, now):
    blocker = sqlite3.connect(filled, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with CollateralStore(filled, roots=world.trust_roots, busy_timeout=0.05) as store:
        with pytest.raises(CollateralUnavailable, match="another process"):
            store.add([], seen=now, source="x")
        store.collateral(world.machine.fmspc, "platform", "sgx", at=now)  # readers do not wait
        blocker.execute("ROLLBACK")
        assert store.add([], seen=now, source="x") == 0
    blocker.close()


def test_a_failed_write_leaves_nothing_behind(path):
    database = StoreDatabase(path, create=True)

    def fail() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO chains (digest, pem) VALUES (x'00', x'00')")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chains").scalar() == 0
    database.close()


def test_a_read_sees_one_moment(path):
    database = StoreDatabase(path, create=True)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chains").scalar() == 0

        def write() -> None:
            with database.write() as other:
                other.exec_driver_sql("INSERT INTO chains (digest, pem) VALUES (x'00', x'00')")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert connection.exec_driver_sql("SELECT count(*) FROM chains").scalar() == 0
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chains").scalar() == 1
    database.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_without_permission_is_named(filled, world, now):
    filled.chmod(0)
    with pytest.raises(CollateralError, match="permissions"):
        use(filled, world, now)


def test_only_sqlite_files_look_like_a_store(tmp_path, filled):
    (tmp_path / "text").write_text("hello")
    assert is_store(str(filled))
    assert not is_store(str(tmp_path / "text"))
    assert not is_store(str(tmp_path))
    assert not is_store(str(tmp_path / "missing"))


def test_a_killed_process_leaves_nothing_for_long(path, world):
    # The process dies while its new store is not in place yet.
    program = (
        "import os, signal, pathlib, sys\n"
        "from confcom.collateral.store.database import unfinished_store\n"
        "with unfinished_store(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 1
    with unfinished_store(path) as mine:
        assert [entry.name for entry in path.parent.iterdir()] == [mine.name]
        CollateralStore(path, roots=world.trust_roots).close()
        # The leftover is gone, the one that is being made is not.
        assert {entry.name for entry in path.parent.iterdir()} == {path.name, mine.name}
        path.unlink()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_store_that_another_process_made_meanwhile_stays(path, world):
    with pytest.raises(FileExistsError), unfinished_store(path):
        CollateralStore(path, roots=world.trust_roots).close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
