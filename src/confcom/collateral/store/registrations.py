"""Platforms that asked a collateral service for PCK certificates, and what their next certificate is asked with.

They live in the file of the `CollateralStore`. An encrypted PPID and a platform manifest identify a machine to Intel:
they are kept because a refresh needs them, and shown to administrators alone. No call here takes longer because many
platforms are registered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.rows import seconds, time_of
from confcom.errors import CollateralUnavailable
from confcom.protocols.pcs import PckCertRequest, PckCertsRequest

MAX_REGISTRATIONS = 1_000_000
"""Rows; the largest fleets have 100,000 machines with a handful of raw TCBs each."""

PAGE = 200
"""Registrations read at a time; each has a manifest of some 17 kB at most."""

State = Literal["waiting", "unavailable", "cached"]
"""Asked for and not had yet; asked for, and Intel has none for it; in the store."""

_COLUMNS = "qe_id, pce_id, cpu_svn, pce_svn, encrypted_ppid, platform_manifest, fmspc, state, since, last_seen"


class Place(NamedTuple):
    """Where a registration stands in a list: the columns that lists are ordered by."""

    fmspc: str = ""
    qe_id: str = ""
    pce_id: str = ""
    cpu_svn: str = ""
    pce_svn: int = -1


@dataclass(frozen=True, slots=True)
class Registration:
    """A platform and what its certificates are asked with, and how far that got. `fmspc` is empty until known.

    The request is for the certificate of a raw TCB; or, of a platform that gave its manifest alone, for all of its
    certificates. `last_seen` is when the platform asked last, by default at `since`.
    """

    request: PckCertRequest | PckCertsRequest
    state: State
    since: datetime
    fmspc: bytes = b""
    last_seen: datetime | None = None

    @property
    def place(self) -> Place:
        """Where it stands in a list."""
        qe_id, pce_id, cpu_svn, pce_svn = _key(self.request)
        return Place(self.fmspc.hex(), qe_id, pce_id, cpu_svn, pce_svn)


class Registrations:
    """The registrations in a store. Safe to use from several threads and processes."""

    def __init__(self, database: StoreDatabase) -> None:
        self._database = database

    def put(self, registration: Registration) -> None:
        """Keep a registration. What an earlier one of the platform knew and this one does not say stays known."""
        with self._database.write() as connection:
            put_registration(connection, registration)

    def of_platform(self, qe_id: bytes, pce_id: bytes) -> tuple[Registration, ...]:
        """The registrations of one platform, the latest at the front."""
        return self._select("WHERE qe_id = ? AND pce_id = ? ORDER BY since DESC", (qe_id.hex(), pce_id.hex()))

    def page(
        self, state: State, *, fmspcs: Sequence[bytes] = (), after: Place | None = None, limit: int = PAGE
    ) -> tuple[Registration, ...]:
        """The registrations in a state that come after a place, of these FMSPCs; of all where none is named."""
        start = after or Place()
        if not fmspcs:
            return self._select(f"{_AFTER} LIMIT ?", (state, *start, limit))
        found: list[Registration] = []
        for fmspc in sorted({fmspc.hex() for fmspc in fmspcs}):
            if fmspc >= start.fmspc and len(found) < limit:
                begin = start if fmspc == start.fmspc else Place(fmspc)
                rest = _AFTER.replace("WHERE", "WHERE fmspc = ? AND")
                found += self._select(f"{rest} LIMIT ?", (fmspc, state, *begin, limit - len(found)))
        return tuple(found)

    def pages_due(self, state: State, *, until: datetime, limit: int = PAGE) -> Iterator[tuple[Registration, ...]]:
        """The registrations in a state whose `since` is not after `until`, the earliest first, in pages."""
        after = (-1, 0)
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    f"SELECT rowid, {_COLUMNS} FROM registrations WHERE state = ? AND since <= ? "  # noqa: S608
                    "AND (since, rowid) > (?, ?) ORDER BY since, rowid LIMIT ?",
                    (state, seconds(until), *after, limit),
                ).fetchall()
                page = tuple(_registration(row[1:]) for row in rows)
            if not page:
                return
            yield page
            after = (seconds(page[-1].since), rows[-1][0])

    def all(self, state: State) -> Iterator[Registration]:
        """All registrations in a state, read in pages."""
        after: Place | None = None
        while page := self.page(state, after=after):
            yield from page
            after = page[-1].place

    def count(self, state: State, *, fmspcs: Sequence[bytes] = ()) -> int:
        """How many registrations are in a state."""
        with self._database.read() as connection:
            if not fmspcs:
                return _count(connection, "WHERE state = ?", (state,))
            return sum(
                connection.execute(
                    "SELECT count(*) FROM registrations WHERE state = ? AND fmspc = ?", (state, fmspc.hex())
                ).fetchone()[0]
                for fmspc in set(fmspcs)
            )

    def count_all(self) -> int:
        """How many registrations there are."""
        with self._database.read() as connection:
            return _count(connection, "", ())

    def _select(self, rest: str, values: tuple[str | int, ...]) -> tuple[Registration, ...]:
        with self._database.read() as connection:
            # `rest` is written here, and only its values come from outside.
            rows = connection.execute(f"SELECT {_COLUMNS} FROM registrations {rest}", values)  # noqa: S608
            return tuple(_registration(row) for row in rows)


_AFTER = (
    "WHERE state = ? AND (fmspc, qe_id, pce_id, cpu_svn, pce_svn) > (?, ?, ?, ?, ?) "
    "ORDER BY fmspc, qe_id, pce_id, cpu_svn, pce_svn"
)


def put_registration(connection: sqlite3.Connection, registration: Registration) -> None:
    """Keep a registration in the transaction that is open."""
    request, since = registration.request, seconds(registration.since)
    last_seen = since if registration.last_seen is None else seconds(registration.last_seen)
    connection.execute(
        f"INSERT INTO registrations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "  # noqa: S608
        "encrypted_ppid = coalesce(excluded.encrypted_ppid, encrypted_ppid), "
        "platform_manifest = coalesce(excluded.platform_manifest, platform_manifest), "
        "fmspc = iif(excluded.fmspc = '', fmspc, excluded.fmspc), "
        "state = excluded.state, since = excluded.since, last_seen = max(last_seen, excluded.last_seen)",
        (
            *_key(request),
            request.encrypted_ppid,
            request.platform_manifest,
            registration.fmspc.hex(),
            registration.state,
            since,
            last_seen,
        ),
    )
    if _count(connection, "", ()) > MAX_REGISTRATIONS:
        raise CollateralUnavailable(
            f"{MAX_REGISTRATIONS} platforms are registered already",
            advice="Remove those that are gone (`confcom collateral remove`), or use a store for each fleet.",
        )


def restore_registration(connection: sqlite3.Connection, registration: Registration) -> bool:
    """Keep a registration of another store, unless there is one of the same raw TCB; whether it is new."""
    known = "SELECT 1 FROM registrations WHERE qe_id = ? AND pce_id = ? AND cpu_svn = ? AND pce_svn = ?"
    if connection.execute(known, _key(registration.request)).fetchone() is not None:
        return False
    put_registration(connection, registration)
    return True


def _key(request: PckCertRequest | PckCertsRequest) -> tuple[str, str, str, int]:
    qe_id, pce_id = (request.qe_id or b"").hex(), request.pce_id.hex()
    if isinstance(request, PckCertsRequest):
        return qe_id, pce_id, "", 0
    return qe_id, pce_id, request.cpu_svn.hex(), request.pce_svn


def _count(connection: sqlite3.Connection, rest: str, values: tuple[str, ...]) -> int:
    row = connection.execute(f"SELECT sum(registered) FROM registration_counts {rest}", values).fetchone()  # noqa: S608
    return int(row[0])


def _registration(
    row: tuple[str, str, str, int, bytes | None, bytes | None, str, State, int, int],
) -> Registration:
    qe_id, pce_id, cpu_svn, pce_svn, encrypted_ppid, manifest, fmspc, state, since, last_seen = row
    request: PckCertRequest | PckCertsRequest
    if cpu_svn:
        request = PckCertRequest(
            cpu_svn=bytes.fromhex(cpu_svn),
            pce_svn=pce_svn,
            pce_id=bytes.fromhex(pce_id),
            qe_id=bytes.fromhex(qe_id),
            encrypted_ppid=encrypted_ppid,
            platform_manifest=manifest,
        )
    else:
        request = PckCertsRequest(bytes.fromhex(pce_id), encrypted_ppid, manifest, qe_id=bytes.fromhex(qe_id))
    return Registration(request, state, time_of(since), bytes.fromhex(fmspc), time_of(last_seen))
