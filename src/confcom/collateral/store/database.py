"""The SQLite file of the collateral store: how it is made, opened, read and written, and what its failures mean.

Write-ahead log with `synchronous=FULL`: a write that returned is on the disk, also after a power failure. Writes are
few and small, so that costs nothing that matters. Readers never wait for the writer, nor it for them; writers of
several processes wait for each other up to the busy timeout.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from confcom.collateral.store.rows import APPLICATION_ID, MIGRATIONS
from confcom.errors import CollateralError, CollateralNotFound, CollateralUnavailable, ConfcomError

SQLITE_MAGIC = b"SQLite format 3\0"
"""What a SQLite file begins with."""

BUSY_TIMEOUT = 10.0
"""Seconds that a writer waits for another process's write."""

_DAMAGED = (
    "Move the file and its -wal and -shm away, import the last export (`confcom collateral import`) and fetch again "
    "(`confcom collateral fetch`). PCK certificates and registrations of platforms are in an export made with "
    "--platforms alone; else register the platforms again."
)


class StoreDatabase:
    """One file; safe to use from several threads and processes. Times out, never hangs."""

    def __init__(self, path: Path, *, create: bool, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._writing = threading.Lock()
        self.failures = 0
        """Transactions that failed because of SQLite or of the file's content."""
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        _remove_leftovers(path)
        if not path.exists():
            if not create:
                raise CollateralNotFound(
                    f"there is no collateral store at {path}",
                    advice="Make one with `confcom collateral fetch --store`.",
                )
            self._create()
        try:
            with self._translated():
                connection = self._connect()
                self._idle.append(connection)
                self._migrate(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection with one consistent view of the store."""
        with self._translated(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction: all of it is kept when the block ends well, none of it otherwise."""
        with self._translated(), self._writing, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.rollback()
                raise

    def check(self) -> None:
        """Read the whole file and compare its tables with their indexes; damage is a `CollateralError`."""
        with self.read() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
        if found != "ok" or broken is not None:
            raise self._damaged(str(found))

    def close(self) -> None:
        """Close every connection; the last one to close tidies the write-ahead log away."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        return _connect(self.path, self._busy_timeout)

    def _create(self) -> None:
        # Put in place whole: no process ever opens half a store. If another process was faster, its store serves.
        with suppress(FileExistsError), unfinished_store(self.path):
            pass

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise CollateralError(
                f"{self.path} is a SQLite file, but not a collateral store", advice="Name another file with --store."
            )
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise CollateralError(
                f"{self.path} was written by a newer confcom (store version {version}, known is {len(MIGRATIONS)})",
                advice="Use that confcom, or another file.",
            )
        if version < len(MIGRATIONS):
            connection.execute("BEGIN IMMEDIATE")
            _apply(connection, _version(connection))
            connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self.failures += 1
            raise self._error(error) from error
        except ConfcomError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            # A row that we did not write so.
            self.failures += 1
            raise self._damaged(str(error)) from error

    def _error(self, error: sqlite3.Error) -> CollateralError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CollateralUnavailable(
                f"another process is writing the collateral store {self.path} and did not finish in time",
                advice="Try again in a moment.",
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(error, sqlite3.DataError):
            return self._damaged(str(error))
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            return CollateralError(
                f"the collateral store {self.path} cannot be used: {error}",
                advice="Check the path, its permissions (the folder must be writable too) and the space on the disk.",
            )
        # A table that is not there, or a value of another type: not written by us.
        return self._damaged(str(error))

    def _damaged(self, found: str) -> CollateralError:
        return CollateralError(f"the collateral store {self.path} is damaged: {found}", advice=_DAMAGED)


def is_store_file(path: Path) -> bool:
    """Whether the file begins as a SQLite file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


UNFINISHED = ".new"
"""How the names of stores end that are not in place yet; they begin with a dot and the store's name."""


@contextmanager
def unfinished_store(path: Path) -> Iterator[Path]:
    """A new empty store beside `path`; it takes its place when the block ends well, and is removed otherwise.

    If a store is at `path` by then, it stays, and the new one is dropped: `FileExistsError`. The lock on the file
    distinguishes it from the leftover of a killed process.
    """
    _remove_leftovers(path)
    with _making(path):
        descriptor, temporary = _locked_file(path)
    try:
        with _making(path):
            _initialise(temporary)
        yield temporary
        with _making(path):
            os.link(temporary, path)
            _sync_folder(path.parent)
    finally:
        _remove(temporary)
        os.close(descriptor)


@contextmanager
def _making(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise CollateralError(
            f"the collateral store {path} cannot be made: {getattr(error, 'strerror', None) or error}",
            advice="Name a folder that exists and can be written, on a local file system.",
        ) from error


def _locked_file(path: Path) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink == 1:
            return descriptor, Path(name)
        os.close(descriptor)  # taken for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    """Remove unfinished stores of killed processes. A running process holds the lock of its own."""
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(UNFINISHED):
                descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(Path(entry.path))
                except BlockingIOError:
                    continue
                finally:
                    os.close(descriptor)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _initialise(path: Path) -> None:
    connection = _connect(path, BUSY_TIMEOUT)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _apply(connection, 0)
        connection.execute("COMMIT")
    finally:
        connection.close()


def _connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection, version: int) -> None:
    """Run the steps after `version`, inside the transaction that is open (`executescript` would end it)."""
    for step in MIGRATIONS[version:]:
        for statement in _statements(step):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StoreWatch:
    """Notices writes to the file of a store by this process or another. One thread at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._version = self._read()
            except BaseException:
                self.close()
                raise
        except sqlite3.Error as error:
            raise CollateralError(f"the collateral store {path} cannot be watched: {error}") from error

    def changed(self) -> bool:
        """Whether there was a write since the last call; a file that cannot be read counts as changed."""
        try:
            version = self._read()
        except sqlite3.Error:
            return True
        changed = version != self._version
        self._version = version
        return changed

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self) -> int:
        # SQLite changes this number for every commit that another connection made.
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
