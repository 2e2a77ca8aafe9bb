"""Announcements of changes between replicas, and leases for work that one replica does for all.

What a process keeps in memory is read again when another one announced a change, and after `POLL` seconds in any case:
notifications are lost while a connection is down.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from confcom.database.engine import Database

POLL = 15.0
"""Seconds after which `changed` is called where no change was announced."""
LOOK_AT_FILE = 0.5
"""Seconds between two looks at the change counter of an SQLite file."""
_CHANNEL = "confcom"
_RETRY = 1.0


def announce(connection: sa.Connection, topic: str) -> None:
    """Announce the change that this transaction makes to every `Watch` of the database, once it is committed.

    `topic` has fewer than 8,000 bytes. SQLite needs no announcement: its file counts transactions.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(announcement(topic)))


def announcement(topic: str) -> sa.ColumnElement[Any]:
    """The announcement as a column of a statement (PostgreSQL)."""
    return sa.func.pg_notify(_CHANNEL, topic)


class Watch:
    """Calls `changed` in a thread of its own: with the topic of an announcement, or with "" for anything."""

    def __init__(self, database: Database, changed: Callable[[str], None], *, poll: float = POLL) -> None:
        self._database, self._changed, self._poll = database, changed, poll
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Have the thread end; it does within a second, or when a call of `changed` has ended."""
        self._stop.set()
        self._thread.join(2 * _RETRY)

    def _run(self) -> None:
        follow = self._follow_server if self._database.shared else self._follow_file
        while not self._stop.is_set():
            try:
                follow()
            except Exception as error:  # noqa: BLE001 - of the driver, of `changed`: the watch goes on
                _warn(error)
                self._call("")
                self._stop.wait(_RETRY)

    def _call(self, topic: str) -> None:
        try:
            self._changed(topic)
        except Exception as error:  # noqa: BLE001 - one mistake must not end the watch
            _warn(error, topic=topic)

    def _follow_server(self) -> None:
        from confcom.database.postgresql import connect

        with connect(self._database.address.url, autocommit=True) as connection:
            connection.execute(f"LISTEN {_CHANNEL}")
            while not self._stop.is_set():
                self._call("")  # what was announced before, or got lost
                waited = 0.0
                while waited < self._poll and not self._stop.is_set():
                    for heard in connection.notifies(timeout=_RETRY):
                        self._call(heard.payload)
                    waited += _RETRY
                connection.execute("SELECT 1")  # a server that is gone sends nothing: notice it

    def _follow_file(self) -> None:
        with self._database.read():  # which also sees to files that were replaced
            file, connection = self._database.file_id(), self._database.open_file()
        try:
            seen, waited = -1, 0.0
            while not self._stop.is_set() and self._database.file_id() == file:
                # SQLite changes this number for every commit that another connection made.
                version = int(connection.execute("PRAGMA data_version").fetchone()[0])
                if version != seen or waited >= self._poll:
                    seen, waited = version, 0.0
                    self._call("")
                self._stop.wait(LOOK_AT_FILE)
                waited += LOOK_AT_FILE
        finally:
            connection.close()


def _warn(error: Exception, **more: str) -> None:
    import structlog  # daemons have it; what only opens a store does not

    structlog.get_logger().warning("database.watch", reason=str(error).partition("\n")[0], **more)


def lease_table(metadata: sa.MetaData) -> sa.Table:
    """The table of `Leases`: a chain makes one."""
    return sa.Table(
        "lease",
        metadata,
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", sa.DateTime, nullable=False),
    )


class Leases:
    """Leases with a deadline: one holder of a name at a time, across replicas; one that died loses it by itself.

    They save work and decide nothing: clocks of replicas may differ, so what is done under one may be done twice. A
    lease that would last more than twice as long as one that is taken now was taken by a clock that was wrong.
    """

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database, self._table, self._holder = database, table, secrets.token_hex(16)

    def take(self, name: str, now: datetime, lasting: timedelta) -> bool:
        """Whether this holder has the lease now, until `lasting` from `now`; one that it had is prolonged."""
        table, now = self._table, now.astimezone(UTC).replace(tzinfo=None)
        until = now + lasting
        with self._database.write() as connection:
            made = self._database.insert(connection.dialect.name, table).values(
                name=name, holder=self._holder, until=until
            )
            taken = made.on_conflict_do_update(
                index_elements=[table.c.name],
                set_={"holder": self._holder, "until": until},
                where=(table.c.holder == self._holder) | (table.c.until <= now) | (table.c.until > now + 2 * lasting),
            )
            return connection.execute(taken.returning(table.c.name)).first() is not None

    def release(self, name: str) -> None:
        """Give the lease back, if this holder has it."""
        with self._database.write() as connection:
            table = self._table
            connection.execute(sa.delete(table).where(table.c.name == name, table.c.holder == self._holder))
