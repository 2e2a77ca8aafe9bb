"""The database of the collateral store, an SQLite file or a PostgreSQL server: made, opened, read, written, watched.

A write that returned is on the disk, also after a power failure. Writes are few and small: one at a time, on PostgreSQL
across all replicas. Readers never wait for the writer, nor it for them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from confcom.collateral.sources import SQLITE_MAGIC
from confcom.collateral.store.schema import APPLICATION_ID, CHANGES, NEWEST
from confcom.database.changes import announcement
from confcom.database.engine import BUSY_TIMEOUT, Database, DatabaseAddress, engines_error
from confcom.errors import (
    CollateralError,
    CollateralNotFound,
    CollateralUnavailable,
    ConfcomError,
    ConfigError,
    DatabaseDamaged,
    DatabaseError,
    DatabaseUnavailable,
)
from confcom.input_file import read_bounded

TOPIC = "collateral"
"""Of the announcements of changes, and the lock of writers."""
_DAMAGED = (
    "Move the file and its -wal and -shm away, import the last export (`confcom collateral import`) and fetch again "
    "(`confcom collateral fetch`). PCK certificates and registrations of platforms are in an export made with "
    "--platforms alone; else register the platforms again."
)
_REFUSALS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_PERMISSIONS = "Check the path, its permissions (the folder must be writable too) and the space on the disk."
_RESTORE = "Stop the services and restore the last backup of the database."


class StoreUnavailable(CollateralUnavailable):
    """The store is busy or its server does not answer; the source of collateral is not to blame."""


class StoreDatabase(Database):
    """The database of one store: its failures are `CollateralError`s with advice. Times out, never hangs."""

    def __init__(self, store: Path | str, *, create: bool, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """`store`: a path, or the URL of a PostgreSQL database, which `confcom collateral migrate` has prepared."""
        super().__init__(DatabaseAddress.parse(store), busy_timeout=busy_timeout)
        self.written = 0
        """Changes that this object made."""
        try:
            if self.address.path is not None:
                self._find(self.address.path, create=create)
            self._check_schema()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """`write`, one at a time, which is counted and announced to other processes."""
        with self.write(TOPIC) as connection:
            yield connection
            connection.execute(_COUNT_AND_ANNOUNCE if self.shared else _COUNT_CHANGE)
        self.written += 1

    def _find(self, path: Path, *, create: bool) -> None:
        _remove_leftovers(path)
        try:
            if not path.exists():
                if not create:
                    raise CollateralNotFound(
                        f"there is no collateral store at {path}",
                        advice="Make one with `confcom collateral fetch --store`.",
                    )
                # Put in place whole: no process opens half a store. If another process was faster, its store serves.
                with suppress(FileExistsError), unfinished_store(path):
                    pass
            # Before SQLite opens it, which may write to it.
            head = read_bounded(path, 72)
        except OSError as error:
            raise CollateralError(
                f"the collateral store {path} cannot be used: {error.strerror}", advice=_PERMISSIONS
            ) from error
        if head[:16] != SQLITE_MAGIC:
            raise self._damaged("it is no SQLite file")
        if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            raise CollateralError(
                f"{path} is a SQLite file, but not a collateral store", advice="Name another file with --store."
            )

    def _check_schema(self) -> None:
        with self.read() as connection:
            stated = sa.inspect(connection).has_table("alembic_version")
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() if stated else None
        if found == NEWEST:
            return
        # Here, because it takes longer to import than a store to open.
        from confcom.collateral.store.migrations import CHAIN

        with self._translated():
            (CHAIN.check if self.shared else CHAIN.upgrade)(self)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with super()._translated():
                yield
        except CollateralError:
            raise
        except DatabaseDamaged as error:
            raise self._damaged(_engines_reason(error)) from error
        except DatabaseUnavailable as error:
            busy = f"another process is writing the collateral store {self.address} and did not finish in time"
            raise StoreUnavailable(error.message if self.shared else busy, advice=error.advice()) from error
        except ConfigError as error:
            code = getattr(engines_error(error.__cause__), "sqlite_errorcode", None)
            if code is not None and code & 0xFF not in _REFUSALS:
                # A table that is not there, or a value of another type: not written by us.
                raise self._damaged(_engines_reason(error)) from error
            raise CollateralError(error.message, advice=error.advice()) from error
        except ConfcomError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            # A row that we did not write so.
            self.failures += 1
            raise self._damaged(str(error)) from error

    def _damaged(self, found: str) -> CollateralError:
        return CollateralError(
            f"the collateral store {self.address} is damaged: {found}",
            advice=_RESTORE if self.shared else _DAMAGED,
        )


def _engines_reason(error: ConfcomError) -> str:
    """What the engine said."""
    found = engines_error(error.__cause__)
    return error.message.rpartition(" is damaged: ")[2] if found is None else str(found)


_COUNT_CHANGE = sa.update(CHANGES).values(number=CHANGES.c.number + 1)
_COUNT_AND_ANNOUNCE = _COUNT_CHANGE.returning(announcement(TOPIC))


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
    except (OSError, DatabaseError) as error:
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
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(UNFINISHED):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):  # another process may remove it at the same time
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _initialise(path: Path) -> None:
    from confcom.collateral.store.migrations import CHAIN

    database = Database(DatabaseAddress.parse(path))
    try:
        CHAIN.upgrade(database)
    finally:
        database.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
