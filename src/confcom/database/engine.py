"""Where a service keeps its data: the address, transactions, and what failures mean, for SQLite and PostgreSQL.

Statements are SQLAlchemy Core and the same on both. A transaction that returned is on the disk. Every wait ends: for a
connection, for another writer, for an answer. After a failure the next transaction uses a new connection.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from ssl import get_default_verify_paths
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from confcom.errors import ConfigError, DatabaseDamaged, DatabaseError, DatabaseUnavailable
from confcom.formats.arguments import on_this_machine

BUSY_TIMEOUT = 10.0
"""Seconds that a transaction waits for a connection of the pool, or for another writer."""
CONNECTIONS = 10
"""The most connections of one `Database`; one more listens for changes."""
CYCLE = 256
"""Calls of `Database.insert_at_once`, after which SQLite's log is moved into the database."""
IN_THREADS = 2
"""Calls of a cycle that are left to a thread, because they wait for the disk: one moves the log, the next begins a new
one."""
SLOW = 0.05
"""Seconds of an insert after which the disk counts as slow: only threads write, until one of them is faster."""
_NOT_IN_URL = ("hostaddr", "password", "service", "sslpassword", "user")
_RIGHTS = "Check the path or the role, its permissions (SQLite's folder must be writable too), and the space there."
_LATER = "Try again in a moment."
_ONE_VIEW = " ISOLATION LEVEL REPEATABLE READ READ ONLY"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('confcom {}', 0))"


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """A path of an SQLite file, or the URL of a PostgreSQL database. As text it has no password."""

    url: sa.URL

    @classmethod
    def parse(cls, text: str | Path) -> DatabaseAddress:
        """A path, or `postgresql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?PARAMETER=VALUE…]` with libpq's parameters.

        Except on this machine the server is known by its certificate (`sslmode=verify-full`): its name, and an
        authority of `sslrootcert`, of PGSSLROOTCERT, or of the system.

        Raises:
            ConfigError: it is no such URL, or its connection would not be protected.
        """
        if str(text) in ("", ":memory:", "-"):  # SQLite: in memory, one for each thread; a file of that name
            raise ConfigError(f"{str(text)!r} is not the name of a store's file", advice="Name a path.")
        is_ours = str(text).startswith(("postgresql:", "postgres:"))
        if not is_ours and "://" not in str(text):
            return cls(sa.URL.create("sqlite", database=str(text)))
        try:
            url = sa.make_url(str(text)).set(drivername="postgresql+psycopg")
        except (SQLAlchemyError, ValueError):
            is_ours = False
        if not is_ours:  # of another engine or driver, or malformed
            raise ConfigError(  # without the text, which may have a password in it
                "the URL of the database cannot be read",
                advice="Write postgresql://USER@HOST:PORT/DATABASE; percent-encode special characters of a password.",
            )
        return cls(_protected(url))

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        return Path(str(self.url.database)) if self.url.drivername == "sqlite" else None

    def __str__(self) -> str:
        """The path, or the URL without password and parameters."""
        if self.path is not None:
            return str(self.path)
        hosts = ",".join(_hosts(self.url))
        user = f"{self.url.username}@" if self.url.username else ""
        port = f":{self.url.port}" if self.url.port else ""
        return f"postgresql://{user}{hosts}{port}/{self.url.database or ''}"

    __repr__ = __str__


class Query:
    """A SELECT for `Database.look_ups`; compiled once for each engine."""

    def __init__(self, select: sa.Select[Any] | sa.CompoundSelect[Any]) -> None:
        self._select = select
        self._made: dict[str, tuple[str, dict[str, Any]]] = {}

    def of(self, dialect: sa.Dialect, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The statement as the driver takes it, and all of its parameters."""
        made = self._made.get(dialect.name)
        if made is None:
            named: sa.Dialect = sqlite.dialect(paramstyle="named") if dialect.name == "sqlite" else dialect
            compiled = self._select.compile(dialect=named)
            made = self._made[dialect.name] = str(compiled), dict(compiled.params)
        return made[0], {**made[1], **values}


LookUp = Callable[[Query, Mapping[str, Any]], list[tuple[Any, ...]]]


class Database:
    """Transactions of one database; usable from several threads. Nothing is opened before the first transaction."""

    def __init__(self, address: DatabaseAddress, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """`busy_timeout`: see `BUSY_TIMEOUT`."""
        self.address = address
        self.shared = address.path is None
        """Whether replicas on other machines may write too (PostgreSQL)."""
        self.failures = 0
        """Transactions that the database refused or did not answer."""
        self._busy_timeout = busy_timeout
        self._path = address.path or Path()
        self._writing = threading.RLock()
        self._opened = False
        self._at_once: sqlite3.Connection | None = None
        self._at_once_file: tuple[int, ...] | None = None
        self._inserts, self._slow = 0, False
        if self.shared:
            try:
                from confcom.database.postgresql import engine
            except ImportError as error:
                raise ConfigError("PostgreSQL needs psycopg", advice="Install confcom[postgres].") from error
            self.engine = engine(address.url, connections=CONNECTIONS, busy_timeout=busy_timeout)
        else:
            self.engine = sa.create_engine(
                address.url, creator=self.open_file, max_overflow=CONNECTIONS, pool_timeout=busy_timeout
            )
            event.listen(self.engine, "connect", self._note_file)
            event.listen(self.engine, "checkout", self._check_file)
        self._drivers_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error

    @contextmanager
    def read(self, *, paused: bool = False) -> Iterator[sa.Connection]:
        """A connection with one consistent view; `DatabaseError` if there is none.

        `paused`: the reader may take any time between two rows, as what it writes to does.
        """
        with self._translated(), self.engine.connect() as connection:
            connection.exec_driver_sql(f"BEGIN{_ONE_VIEW if self.shared else ''}")
            if self.shared and paused:
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection
            if self.shared:
                connection.commit()  # a rollback would make psycopg drop prepared statements

    @contextmanager
    def look_ups(self) -> Iterator[LookUp]:
        """A function for the few rows of a query, each of its own moment; `DatabaseError` if there are none to be had.

        Several times faster than `read`: the driver is used directly, and PostgreSQL is asked once for each query.
        """
        dialect = self.engine.dialect
        with self._translated(), closing(self.engine.raw_connection()) as pooled:
            own: Any = pooled.driver_connection
            try:
                yield lambda query, values: own.execute(*query.of(dialect, values)).fetchall()
            except self._drivers_error as error:
                pooled.invalidate(error)
                raise

    @contextmanager
    def write(self, alone: str = "", *, flushed: bool = True, single: bool = False) -> Iterator[sa.Connection]:
        """A connection in a transaction: all of it is kept when the block ends well, none of it otherwise.

        Transactions with the same `alone` exclude each other, on every replica; SQLite's always do. `flushed=False`
        spares SQLite the wait for the disk: a power failure may then undo it, the end of a process does not. A `single`
        statement is a transaction of its own, for which PostgreSQL is asked once.
        """
        begun = time.monotonic()
        with self._translated(), self._turn(), self.engine.connect() as connection:
            if not self.shared:
                connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if flushed else 'NORMAL'}")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif not single:
                connection.exec_driver_sql(f"BEGIN; {_LOCK.format(alone)}" if alone else "BEGIN")
            yield connection
            connection.commit()
        self._slow = self._slow and time.monotonic() - begun > SLOW

    def insert_at_once(self, insert: str, rows: Sequence[Sequence[Any]]) -> bool:
        """Commit rows as `write(flushed=False)` does, from an event loop: SQLite takes some microseconds for it.

        False where it would wait, or failed: nothing is kept then, and the caller has a thread write the rows. One
        thread may call this.
        """
        if self.shared or self._slow:
            return False
        self._inserts = (self._inserts + 1) % CYCLE
        if self._inserts < IN_THREADS or not self._writing.acquire(blocking=False):
            return False
        begun = time.monotonic()
        try:
            if self._at_once is not None and self.file_id() != self._at_once_file:
                self._close_at_once()
                return False  # a transaction of the pool sees to what the old log holds
            if self._at_once is None:
                self._at_once = self._open_at_once()
            self._at_once.execute("BEGIN IMMEDIATE")
            self._at_once.executemany(insert, rows)
            self._at_once.execute("COMMIT")
        except Exception:  # noqa: BLE001 - the thread's attempt has the error, in words of ours
            self._close_at_once()
            return False
        finally:
            self._writing.release()
            self._slow = time.monotonic() - begun > SLOW
        return True

    def _open_at_once(self) -> sqlite3.Connection:
        """A connection that waits neither for another process that writes nor for the disk."""
        self._at_once_file = self.file_id()
        opened = self.open_file()
        for setting in "busy_timeout=0", "synchronous=NORMAL", "wal_autocheckpoint=0":
            opened.execute(f"PRAGMA {setting}")
        return opened

    def _close_at_once(self) -> None:
        if self._at_once is not None:
            self._at_once.close()
            self._at_once = None

    @staticmethod
    def insert(dialect: str, table: sa.Table) -> postgresql.Insert:
        """An insert with `on_conflict_do_nothing` and `on_conflict_do_update`, which both engines have."""
        found: Any = postgresql if dialect == "postgresql" else sqlite
        return found.insert(table)  # type: ignore[no-any-return]

    def check(self) -> None:
        """Read the whole SQLite file and compare tables with indexes; `DatabaseDamaged`. PostgreSQL checks itself."""
        if self.shared:
            return
        with self.read() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
            if found != "ok" or broken is not None:
                raise DatabaseDamaged(f"the database {self.address} is damaged: {found}")

    def close(self) -> None:
        self._close_at_once()
        self.engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer at a time in this process: SQLite's own way to wait for another is to look again and again."""
        if self.shared:
            yield
            return
        if not self._writing.acquire(timeout=self._busy_timeout):
            raise DatabaseUnavailable(f"the database {self.address} is busy with another write", advice=_LATER)
        try:
            yield
        finally:
            self._writing.release()

    def open_file(self) -> sqlite3.Connection:
        """A connection to the SQLite file. Only the first one makes it: a file that was moved away may come back."""
        path = self._path.absolute()
        if not self._opened:
            with suppress(OSError):  # SQLite would let every user read it
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Without an isolation level: transactions begin where this module says so.
        name = f"file://{quote(os.fsencode(path))}?mode=rw"
        opened = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False)
        self._opened = True
        try:
            for setting in (
                f"busy_timeout={int(self._busy_timeout * 1000)}", "journal_mode=WAL", "foreign_keys=ON",
                "trusted_schema=OFF", "schema_version",
            ):  # fmt: skip
                opened.execute(f"PRAGMA {setting}").fetchone()  # the last one has SQLite make the log (`file_id`)
        except BaseException:
            opened.close()
            raise
        return opened

    def file_id(self) -> tuple[int, ...] | None:
        """What tells the SQLite file and its log from others of their names; None where one is missing."""
        try:
            found = self._path.stat(), self._path.with_name(f"{self._path.name}-wal").stat()
        except OSError:
            return None
        return tuple(number for file in found for number in (file.st_dev, file.st_ino))

    def _note_file(self, _connection: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's record of the pool
        record.info["file"] = self.file_id()

    def _check_file(self, connection: sqlite3.Connection, record: Any, _proxy: object) -> None:  # noqa: ANN401 - as above
        """Have the pool open the files again if others, or none, have their names now.

        A log that was removed while it was open is out of reach of every other process, and lost when this one ends:
        what it holds goes into the file first.
        """
        if record.info["file"] != self.file_id():
            with self._turn():
                with suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._close_at_once()
            raise InvalidatePoolError

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self._drivers_error) as error:
            self.failures += 1
            raise database_error(error, self.address) from error
        except DatabaseError:
            self.failures += 1
            raise


def engines_error(error: BaseException | None) -> BaseException | None:
    """The driver's own exception: `error`, or the one behind an exception of SQLAlchemy's."""
    return getattr(error, "orig", None) or error


def database_error(error: Exception, address: DatabaseAddress) -> DatabaseError:
    """The error of ours: unavailable (busy, unreachable), damaged, or without rights, space or schema."""
    cause = engines_error(error)
    reason = (str(cause).strip() or type(error).__name__).splitlines()[0]
    code = getattr(cause, "sqlite_errorcode", None)
    kind = _sqlite_fault(code & 0xFF) if code is not None else _postgresql_fault(error)
    if kind == "busy":
        return DatabaseUnavailable(f"the database {address} is busy: {reason}", advice=_LATER)
    if kind == "unreachable":
        return DatabaseUnavailable(
            f"the database {address} does not answer: {reason}",
            advice="Check that the server runs, and its address, credentials and certificate. Connections are made "
            "again by themselves.",
        )
    if kind == "damaged":
        return DatabaseDamaged(f"the database {address} is damaged: {reason}")
    return DatabaseError(f"the database {address} cannot be used: {reason}", advice=_RIGHTS)


def _sqlite_fault(code: int) -> str:
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    return "damaged" if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else "refused"


_SQLSTATES: Mapping[str, str] = {
    "08": "unreachable",  # connection exceptions
    "57P": "unreachable",  # the server stops or starts
    "25006": "busy",  # the server is read-only: another one took over, or a disk is full
    "40": "busy",  # serialization failures, deadlocks
    "55P03": "busy",  # a lock was not to be had in time
    "25P03": "busy",  # a transaction waited too long for this process
    "57014": "busy",  # a statement took too long
    "533": "busy",  # too many connections
    "XX001": "damaged",
    "XX002": "damaged",
}
"""Beginnings of SQLSTATE (PostgreSQL, appendix A)."""


def _postgresql_fault(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "busy"
    cause = engines_error(error)
    state = getattr(cause, "sqlstate", None)
    if state is None:  # libpq's own: no connection, or it broke
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        return "unreachable" if kinds & {"OperationalError", "InterfaceError"} else "refused"
    return next((kind for start, kind in _SQLSTATES.items() if state.startswith(start)), "refused")


def _protected(url: sa.URL) -> sa.URL:
    if refused := [name for name in _NOT_IN_URL if name in url.query]:
        raise ConfigError(
            f"the URL of the database has the parameter {refused[0]!r}",
            advice="Name the host, the user and the password before the path: postgresql://USER:PASSWORD@HOST/DATABASE.",
        )
    if not (hosts := _hosts(url)):
        raise ConfigError("the URL of the database names no host", advice="Write postgresql://USER@HOST/DATABASE.")
    if all(host.startswith("/") or on_this_machine(host) for host in hosts):
        return url
    if url.query.get("sslmode", "verify-full") != "verify-full":
        raise ConfigError(
            f"the URL of the database has sslmode={url.query['sslmode']}, which lets another server take its place",
            advice="Leave sslmode out (verify-full), and name the server's authority with sslrootcert=FILE.",
        )
    return url.update_query_dict({"sslmode": "verify-full", "gssencmode": "disable"} | _authority(url))


def _authority(url: sa.URL) -> dict[str, str]:
    if "sslrootcert" in url.query or "PGSSLROOTCERT" in os.environ:
        return {}
    return {"sslrootcert": get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"}


def _hosts(url: sa.URL) -> list[str]:
    """Libpq takes several, to try one after the other; those of the parameter `host` in the place of the URL's."""
    given = url.query.get("host") or url.host or ()
    return [host for text in ([given] if isinstance(given, str) else given) for host in text.split(",")]
