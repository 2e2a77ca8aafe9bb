"""What both engines promise: transactions, exclusion, waits that end, errors of ours, changes that are told."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from confcom.database import engine
from confcom.database.changes import Leases, Watch, announce, lease_table
from confcom.database.engine import Database, DatabaseAddress, Query, database_error
from confcom.errors import ConfigError, DatabaseDamaged, DatabaseError, DatabaseUnavailable
from postgres_server import OwnServer, PostgresServer
from tcp_proxy import TcpProxy

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
WAIT = 60
METADATA = sa.MetaData()
NUMBERS = sa.Table("numbers", METADATA, sa.Column("number", sa.Integer, primary_key=True))
LEASE = lease_table(METADATA)


@pytest.fixture
def database(database_address: str) -> Iterator[Database]:
    opened = Database(DatabaseAddress.parse(database_address), busy_timeout=0.3)
    with opened.write("tables") as connection:
        METADATA.create_all(connection)
    yield opened
    opened.close()


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """Another process's view of the same database."""
    opened = Database(database.address, busy_timeout=0.3)
    yield opened
    opened.close()


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(sa.select(NUMBERS.c.number).order_by(NUMBERS.c.number)).scalars())


def test_a_single_statement_is_kept_whole_or_not_at_all(database: Database, other: Database) -> None:
    for values, kept in (("(1), (2)", [1, 2]), ("(3), (1)", [1, 2]), ("(3)", [1, 2, 3])):
        with suppress(DatabaseError), database.write(single=True) as connection:
            connection.exec_driver_sql(f"INSERT INTO numbers (number) VALUES {values}")
        assert numbers(other) == kept
    assert database.failures == 1


def test_a_write_is_kept_whole_or_not_at_all(database: Database, other: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(NUMBERS), [{"number": 1}, {"number": 2}])
    with pytest.raises(DatabaseError), database.write() as connection:
        connection.execute(sa.insert(NUMBERS), [{"number": 3}, {"number": 1}])
    assert numbers(other) == [1, 2]
    assert database.failures == 1


INSERT = "INSERT INTO numbers (number) VALUES (?)"


def test_rows_are_inserted_at_once_where_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "IN_THREADS", 0)
    monkeypatch.setattr(engine, "SLOW", 60.0)
    database = Database(DatabaseAddress.parse(tmp_path / "numbers.sqlite"), busy_timeout=0.3)
    other = Database(database.address)
    with database.write() as connection:
        METADATA.create_all(connection)
    assert database.insert_at_once(INSERT, [(1,), (2,)])
    assert numbers(other) == [1, 2]
    # All of them or none.
    assert not database.insert_at_once(INSERT, [(3,), (1,)])
    assert numbers(other) == [1, 2]
    assert database.insert_at_once(INSERT, [(3,)])
    # Neither another process that writes nor another thread of this one is waited for.
    for writer in (other, database):
        with writer.write():
            assert not database.insert_at_once(INSERT, [(4,)])
    assert database.insert_at_once(INSERT, [(4,)])
    # What no database takes is for the thread to explain.
    assert not database.insert_at_once(INSERT, [("\ud800",)])
    # A disk that was slow is left to threads until one of them finds it fast again.
    monkeypatch.setattr(engine, "SLOW", -1.0)
    assert database.insert_at_once(INSERT, [(5,)])
    for number in (6, 7):
        assert not database.insert_at_once(INSERT, [(9,)])
        with database.write(flushed=False) as connection:
            connection.execute(sa.insert(NUMBERS), {"number": number})
    monkeypatch.setattr(engine, "SLOW", 60.0)
    assert not database.insert_at_once(INSERT, [(9,)])
    with database.write(flushed=False) as connection:
        connection.execute(sa.insert(NUMBERS), {"number": 8})
    assert database.insert_at_once(INSERT, [(9,)])
    assert numbers(other) == list(range(1, 10))
    database.close()
    other.close()


def test_the_log_of_inserts_does_not_grow_without_end(tmp_path: Path) -> None:
    database = Database(DatabaseAddress.parse(tmp_path / "numbers.sqlite"))
    with database.write() as connection:
        METADATA.create_all(connection)
    for number in range(3000):
        if not database.insert_at_once(INSERT, [(number,)]):
            with database.write(flushed=False) as connection:
                connection.execute(sa.insert(NUMBERS), [{"number": number}])
    assert (tmp_path / "numbers.sqlite-wal").stat().st_size < 1500 * 4200
    assert numbers(database) == list(range(3000))
    database.close()


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_replicas_of_a_server_insert_in_threads(database: Database) -> None:
    assert not database.insert_at_once(INSERT, [(1,)])


def test_a_read_has_one_view(database: Database, other: Database) -> None:
    with database.read() as connection:
        assert connection.execute(sa.select(NUMBERS)).all() == []
        with other.write() as writing:
            writing.execute(sa.insert(NUMBERS), {"number": 1})
        assert connection.execute(sa.select(NUMBERS)).all() == []
    assert numbers(database) == [1]


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_a_reader_may_pause_if_it_says_so(database: Database) -> None:
    """The server ends the connection of another one, which may have stopped; the next reader gets the same one."""
    for paused, limit in ((False, "20s"), (True, "0"), (False, "20s")):
        with database.read(paused=paused) as connection:
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == limit


def test_a_read_changes_nothing(database: Database) -> None:
    if database.shared:
        with pytest.raises(DatabaseError, match="read-only"), database.read() as connection:
            connection.execute(sa.insert(NUMBERS), {"number": 1})
    else:
        with database.read() as connection:
            connection.execute(sa.insert(NUMBERS), {"number": 1})
    assert numbers(database) == []


def test_writers_that_exclude_each_other_wait_and_then_give_up(database: Database, other: Database) -> None:
    with database.write("the same") as connection:
        connection.execute(sa.insert(NUMBERS), {"number": 1})
        with pytest.raises(DatabaseUnavailable, match="busy") as refused, other.write("the same"):
            pytest.fail("two at a time")
    assert other.failures == 1
    assert refused.value.advice() == "Try again in a moment."
    with other.write("the same") as connection:
        connection.execute(sa.insert(NUMBERS), {"number": 2})
    assert numbers(database) == [1, 2]


def test_an_error_does_not_cling_to_the_connection(database: Database) -> None:
    for _ in range(20):
        with pytest.raises(DatabaseError), database.write() as connection:
            connection.execute(sa.text("SELECT nothing FROM nowhere"))
    assert numbers(database) == []


def test_a_lease_that_was_taken_by_a_clock_that_was_ahead_is_soon_free(database: Database, other: Database) -> None:
    ours, theirs, lasting = Leases(database, LEASE), Leases(other, LEASE), timedelta(seconds=30)
    assert ours.take("round", NOW + timedelta(seconds=20), lasting)
    assert not theirs.take("round", NOW, lasting)  # clocks differ a little
    assert ours.take("round", NOW + timedelta(hours=1), lasting)
    assert theirs.take("round", NOW, lasting)
    assert not ours.take("round", NOW, lasting)


def test_another_one_has_a_lease_when_it_was_given_back_or_ran_out(database: Database, other: Database) -> None:
    mine, theirs = Leases(database, LEASE), Leases(other, LEASE)
    minute = timedelta(minutes=1)
    assert mine.take("round", NOW, minute)
    assert not theirs.take("round", NOW + minute / 2, minute)
    assert theirs.take("another", NOW, minute)
    assert mine.take("round", NOW + minute / 2, minute)
    theirs.release("round")
    assert not theirs.take("round", NOW + minute, minute)
    assert theirs.take("round", NOW + 1.5 * minute, minute)
    theirs.release("round")
    assert mine.take("round", NOW + 1.5 * minute, minute)


def test_a_watch_hears_of_changes_by_others(database: Database, other: Database) -> None:
    heard: queue.Queue[str] = queue.Queue()
    watch = Watch(database, heard.put, poll=3600.0)
    try:
        assert heard.get(timeout=WAIT) == ""  # what was before
        with other.write() as connection:
            connection.execute(sa.insert(NUMBERS), {"number": 1})
            announce(connection, "numbers")
        assert heard.get(timeout=WAIT) == ("numbers" if database.shared else "")
        assert numbers(database) == [1]
    finally:
        watch.close()


def test_a_watch_looks_by_itself_and_survives_mistakes(database: Database) -> None:
    calls: queue.Queue[str] = queue.Queue()

    def changed(topic: str) -> None:
        calls.put(topic)
        raise ValueError("a mistake")

    watch = Watch(database, changed, poll=0.1)
    try:
        assert [calls.get(timeout=WAIT) for _ in range(3)] == ["", "", ""]
    finally:
        watch.close()


def test_threads_share_a_database(database: Database) -> None:
    failures: list[Exception] = []

    def add(number: int) -> None:
        try:
            with database.write("numbers") as connection:
                newest = connection.execute(sa.select(sa.func.max(NUMBERS.c.number))).scalar() or 0
                connection.execute(sa.insert(NUMBERS), {"number": newest + 1})
        except DatabaseUnavailable:
            add(number)
        except Exception as error:  # noqa: BLE001 - for the test
            failures.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert failures == []
    assert numbers(database) == list(range(1, 17))


def test_files_that_are_no_database_or_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(DatabaseDamaged, match="not a database"), Database(_at(tmp_path / "text")).read():
        pass
    missing = Database(_at(tmp_path / "no" / "file"))
    with pytest.raises(DatabaseError, match="unable to open") as refused, missing.read():
        pass
    assert "permissions" in refused.value.advice()


def test_a_file_that_was_moved_away_is_not_made_and_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "IN_THREADS", 0)
    monkeypatch.setattr(engine, "SLOW", 60.0)
    path, away = tmp_path / "of 100% ?#\xe4.sqlite", tmp_path / "away"
    away.mkdir()
    database = Database(DatabaseAddress.parse(path))
    with database.write() as connection:
        METADATA.create_all(connection)
    assert path.stat().st_mode & 0o777 == 0o600
    told: queue.Queue[str] = queue.Queue()
    watch = Watch(database, told.put, poll=3600.0)
    told.get(timeout=WAIT)
    assert database.insert_at_once(INSERT, [(1,)])
    query = Query(sa.select(NUMBERS.c.number))
    for file in list(tmp_path.glob(f"{path.name}*")):
        file.rename(away / file.name)
    with pytest.raises(DatabaseError, match="unable to open"), database.look_ups() as look_up:
        look_up(query, {})
    with pytest.raises(DatabaseError, match="unable to open"):
        numbers(database)
    with pytest.raises(DatabaseError, match="unable to open"), database.write():
        pass
    assert not database.insert_at_once(INSERT, [(2,)])
    told.get(timeout=WAIT)
    assert list(tmp_path.iterdir()) == [away]
    # Another file comes, as from a backup.
    other = Database(DatabaseAddress.parse(away / "other"))
    with other.write() as connection:
        METADATA.create_all(connection)
        connection.execute(sa.insert(NUMBERS), [{"number": 7}])
    other.close()
    (away / "other").rename(path)
    with database.look_ups() as look_up:
        assert look_up(query, {}) == [(7,)]
    assert database.insert_at_once(INSERT, [(8,)])
    assert numbers(database) == [7, 8]
    while not told.empty():
        told.get()
    with closing(Database(database.address)) as another, another.write() as connection:
        connection.execute(sa.insert(NUMBERS), [{"number": 9}])
    told.get(timeout=WAIT)
    watch.close()
    database.close()


@pytest.mark.parametrize("removed", [["-wal"], ["-wal", "-shm"]])
@pytest.mark.parametrize("by", ["a transaction", "an insert of the event loop", "the watch"])
def test_a_log_that_was_removed_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, removed: list[str]
) -> None:
    """`-wal` is deleted under a running service, which then is killed: every accepted write is in the file."""
    monkeypatch.setattr(engine, "IN_THREADS", 0)
    monkeypatch.setattr(engine, "SLOW", 60.0)
    path = tmp_path / "store"
    with closing(Database(_at(path))) as database:
        with database.write() as connection:
            METADATA.create_all(connection)
            connection.execute(sa.insert(NUMBERS), [{"number": 1}])
        assert database.insert_at_once(INSERT, [(2,)])
        watch, told = None, queue.Queue[str]()
        if by == "the watch":
            watch = Watch(database, told.put, poll=3600.0)
            told.get(timeout=WAIT)
        for suffix in removed:
            (tmp_path / f"store{suffix}").unlink()
        expected = [1, 2]
        if by == "the watch":
            deadline = time.monotonic() + WAIT
            while not (tmp_path / "store-wal").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        elif by == "a transaction":
            with database.write() as connection:
                connection.execute(sa.insert(NUMBERS), [{"number": 3}])
            expected += [3]
        else:
            assert not database.insert_at_once(INSERT, [(4,)])
            with database.write(flushed=False) as connection:  # as the caller does then
                connection.execute(sa.insert(NUMBERS), [{"number": 4}])
            assert database.insert_at_once(INSERT, [(5,)])
            expected += [4, 5]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda _: numbers(database), range(32))) == [expected] * 32
        killed = tmp_path / "killed"
        killed.mkdir()
        for name in ("store", "store-wal"):
            shutil.copy(tmp_path / name, killed / name)
        with closing(Database(_at(killed / "store"))) as left:
            assert numbers(left) == expected
            left.check()
        if watch is not None:
            watch.close()


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    database = Database(_at(path))
    with database.write() as connection:
        METADATA.create_all(connection)
        connection.execute(sa.insert(NUMBERS), [{"number": number} for number in range(5000)])
    database.check()
    database.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = bytes(4096)
    path.write_bytes(content)
    with closing(Database(_at(path))) as database, pytest.raises(DatabaseDamaged, match="is damaged"):
        database.check()


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    database = Database(DatabaseAddress.parse("postgresql://me:secret@127.0.0.1:1/store"))
    with pytest.raises(DatabaseUnavailable, match="does not answer") as refused, database.read():
        pass
    assert "secret" not in str(refused.value)
    assert "postgresql://me@127.0.0.1:1/store" in refused.value.message


@pytest.mark.postgres
def test_a_server_is_known_by_its_certificate(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the certificate of a server that CONFCOM_TEST_POSTGRES names is not known here")
    # As for a server elsewhere: no host counts as this machine.
    monkeypatch.setattr(engine, "on_this_machine", lambda _: False)
    monkeypatch.setenv("PGSSLROOTCERT", str(postgres.authority))
    named = postgres.of("postgres").replace("127.0.0.1", "localhost")
    database = Database(DatabaseAddress.parse(named))
    with database.read() as connection:
        used = connection.execute(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert used.scalar() is True
    database.close()
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1"), Database(_at(postgres.of("postgres"))).read():
        pass  # the certificate is for another name
    monkeypatch.delenv("PGSSLROOTCERT")
    with pytest.raises(DatabaseUnavailable, match="certificate"), Database(_at(named)).read():
        pass  # no authority of the system made it


@pytest.fixture
def proxied(database: Database, postgres: PostgresServer) -> Iterator[tuple[Database, TcpProxy]]:
    """A database of the server of the tests, through a proxy."""
    if not isinstance(postgres, OwnServer):
        pytest.skip("a server that CONFCOM_TEST_POSTGRES names has no proxy of the tests before it")
    proxy, port = TcpProxy(postgres.port), f":{postgres.port}/"
    address = database.address.url.render_as_string(hide_password=False).replace("+psycopg", "")
    opened = Database(_at(address.replace(port, f":{proxy.port}/")))
    yield opened, proxy
    opened.close()
    proxy.close()


def test_a_transaction_that_the_server_ended_for_its_client_is_slow_is_busy() -> None:
    ended = psycopg.errors.IdleInTransactionSessionTimeout("terminating connection due to idle-in-transaction timeout")
    assert isinstance(database_error(ended, DatabaseAddress.parse("postgresql://localhost/a")), DatabaseUnavailable)


NUMBER = Query(sa.select(NUMBERS.c.number).where(NUMBERS.c.number == sa.bindparam("wanted")))


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_a_server_is_asked_once_for_what_goes_together(proxied: tuple[Database, TcpProxy]) -> None:
    database, proxy = proxied

    def look_up() -> None:
        with database.look_ups() as ask:
            assert ask(NUMBER, {"wanted": 0}) == []

    def read() -> None:
        assert numbers(database) == []

    def write() -> None:
        with database.write("together") as connection:
            connection.execute(sa.delete(NUMBERS))

    for call, exchanges in ((look_up, 1), (read, 3), (write, 3)):
        for _ in range(10):
            call()  # psycopg prepares a statement when it comes again and again
        begun = proxy.asked
        call()
        assert proxy.asked - begun == exchanges, call


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_connections_that_the_server_ended_are_not_used_again(proxied: tuple[Database, TcpProxy]) -> None:
    database, proxy = proxied
    with database.read(), database.read():
        assert numbers(database) == []
    for _ in range(3):
        proxy.cut()
        with database.look_ups() as ask:
            assert ask(NUMBER, {"wanted": 0}) == []
        assert numbers(database) == []
    assert database.failures == 0


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_a_server_that_became_read_only_is_connected_to_again(database: Database) -> None:
    """Another server may have taken over, which only a new connection finds."""
    with database.write() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable, match="read-only"), database.write() as connection:
        connection.execute(sa.insert(NUMBERS), {"number": 1})
    with database.write(single=True) as connection:
        connection.execute(sa.insert(NUMBERS), {"number": 2})
    assert numbers(database) == [2]


@pytest.mark.postgres
@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
def test_a_look_up_that_breaks_is_an_error_of_ours(proxied: tuple[Database, TcpProxy]) -> None:
    database, proxy = proxied

    def interrupted() -> None:
        with database.look_ups() as ask:
            proxy.cut()
            ask(NUMBER, {"wanted": 0})

    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        interrupted()
    wrong = Query(sa.select(sa.literal_column("1 / 0")))
    with pytest.raises(DatabaseError, match="cannot be used"), database.look_ups() as ask:
        ask(wrong, {})
    assert numbers(database) == []
    assert database.failures == 2


@pytest.mark.parametrize(
    ("text", "shown", "more"),
    [
        ("/var/lib/confcom/a%20?b.sqlite", "/var/lib/confcom/a%20?b.sqlite", {}),
        ("postgresql://u:p%40w@localhost/db", "postgresql://u@localhost/db", {}),
        ("postgres://u:pw@[::1]:5433/db", "postgresql://u@::1:5433/db", {}),
        ("postgresql://u@/db?host=/run/postgresql", "postgresql://u@/run/postgresql/db", {}),
        ("postgresql://u:pw@db.example/db", "postgresql://u@db.example/db", {"sslmode": "verify-full"}),
        # Libpq connects to the host of the parameter, and to each of a list.
        ("postgresql://u@localhost/db?host=far", "postgresql://u@far/db", {"sslmode": "verify-full"}),
        ("postgresql://u@/db?host=/run/pg,far", "postgresql://u@/run/pg,far/db", {"sslmode": "verify-full"}),
        ("postgresql://u@/db?host=/run/pg,localhost", "postgresql://u@/run/pg,localhost/db", {}),
        (
            "postgresql://u:pw@db.example:5433/db?sslmode=verify-full&sslrootcert=/ca.pem",
            "postgresql://u@db.example:5433/db",
            {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
        ),
    ],
)
def test_addresses(text: str, shown: str, more: dict[str, str]) -> None:
    address = DatabaseAddress.parse(text)
    assert (str(address), repr(address)) == (shown, shown)
    assert more.items() <= dict(address.url.query).items()
    if "db.example" in text:
        assert address.url.query["sslrootcert"]
        assert address.url.query["gssencmode"] == "disable"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("postgresql://u:secret@db:port/db", "cannot be read"),
        ("postgresql:u:secret", "cannot be read"),
        ("postgresql+psycopg2://u:secret@db/db", "cannot be read"),
        ("mysql://u:secret@db/db", "cannot be read"),
        ("sqlite:////var/lib/secret.sqlite", "cannot be read"),
        ("postgresql:///db", "names no host"),
        ("postgresql://u:secret@db/db?sslmode=require", "sslmode=require"),
        ("postgresql://u:secret@db/db?sslmode=disable", "sslmode=disable"),
        ("postgresql://u@localhost/db?password=secret", "parameter 'password'"),
        ("postgresql://u@localhost/db?hostaddr=192.0.2.1", "parameter 'hostaddr'"),
        ("postgresql://u@/db?host=localhost&host=db&sslmode=prefer", "sslmode=prefer"),
    ],
)
def test_addresses_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        DatabaseAddress.parse(text)
    assert "secret" not in f"{refused.value.message} {refused.value.advice()}"


def _at(path: str | Path) -> DatabaseAddress:
    return DatabaseAddress.parse(path)
