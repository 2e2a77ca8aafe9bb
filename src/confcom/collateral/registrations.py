"""Platforms that asked a collateral service for PCK certificates, and what their next certificate is asked with.

They live in the file of the `CollateralStore`. An encrypted PPID and a platform manifest identify a machine to Intel:
they are kept because a refresh needs them, and shown to administrators alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from confcom.collateral.store_database import StoreDatabase
from confcom.errors import CollateralUnavailable
from confcom.protocols.pcs import PckCertRequest

MAX_REGISTRATIONS = 200_000
"""Rows; a large fleet has some thousands of machines with a handful of raw TCBs each."""

State = Literal["waiting", "unavailable", "cached"]
"""Asked for and not had yet; asked for, and Intel has none for it; in the store."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS registrations (
        qe_id TEXT NOT NULL,
        pce_id TEXT NOT NULL,
        cpu_svn TEXT NOT NULL,
        pce_svn INTEGER NOT NULL,
        encrypted_ppid BLOB,
        platform_manifest BLOB,
        fmspc TEXT NOT NULL,
        state TEXT NOT NULL,
        since INTEGER NOT NULL,
        PRIMARY KEY (qe_id, pce_id, cpu_svn, pce_svn)
    ) STRICT
"""


@dataclass(frozen=True, slots=True)
class Registration:
    """A platform at a raw TCB: the request for its certificate, and how far that got. `fmspc` is empty until known."""

    request: PckCertRequest
    state: State
    since: datetime
    fmspc: bytes = b""


class Registrations:
    """The registrations in a store's file, which must be there. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self._database = StoreDatabase(path, create=False)
        with self._database.write() as connection:
            connection.execute(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, registration: Registration) -> None:
        """Keep a registration. What an earlier one of the platform knew and this one does not say stays known."""
        request = registration.request
        qe_id = (request.qe_id or b"").hex()
        values = (qe_id, request.pce_id.hex(), request.cpu_svn.hex(), request.pce_svn, request.encrypted_ppid)
        rest = (request.platform_manifest, registration.fmspc.hex(), registration.state, _seconds(registration.since))
        with self._database.write() as connection:
            if connection.execute("SELECT count(*) FROM registrations").fetchone()[0] >= MAX_REGISTRATIONS:
                raise CollateralUnavailable(
                    f"{MAX_REGISTRATIONS} platforms are registered already",
                    advice="Remove those that are gone, or use a store for each fleet.",
                )
            connection.execute(
                "INSERT INTO registrations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "encrypted_ppid = coalesce(excluded.encrypted_ppid, encrypted_ppid), "
                "platform_manifest = coalesce(excluded.platform_manifest, platform_manifest), "
                "fmspc = iif(excluded.fmspc = '', fmspc, excluded.fmspc), "
                "state = excluded.state, since = excluded.since",
                values + rest,
            )

    def of_platform(self, qe_id: bytes, pce_id: bytes) -> tuple[Registration, ...]:
        """The registrations of one platform, the latest at the front."""
        return self._select("WHERE qe_id = ? AND pce_id = ? ORDER BY since DESC", (qe_id.hex(), pce_id.hex()))

    def in_state(self, state: State) -> tuple[Registration, ...]:
        """The registrations in a state, the earliest at the front."""
        return self._select("WHERE state = ? ORDER BY since, qe_id, cpu_svn", (state,))

    def of_fmspcs(self, fmspcs: Sequence[bytes]) -> tuple[Registration, ...]:
        """The registrations whose certificate is in the store, of these FMSPCs; of all where none is named."""
        marks = ", ".join("?" * len(fmspcs))
        condition = f"AND fmspc IN ({marks})" if fmspcs else ""
        return self._select(
            f"WHERE state = 'cached' {condition} ORDER BY qe_id, cpu_svn", tuple(fmspc.hex() for fmspc in fmspcs)
        )

    def _select(self, rest: str, values: tuple[str, ...]) -> tuple[Registration, ...]:
        with self._database.read() as connection:
            # `rest` is written here, and only its values come from outside.
            rows = connection.execute(f"SELECT * FROM registrations {rest}", values).fetchall()  # noqa: S608
            return tuple(_registration(row) for row in rows)


def _registration(row: tuple[str, str, str, int, bytes | None, bytes | None, str, State, int]) -> Registration:
    qe_id, pce_id, cpu_svn, pce_svn, encrypted_ppid, manifest, fmspc, state, since = row
    request = PckCertRequest(
        cpu_svn=bytes.fromhex(cpu_svn),
        pce_svn=pce_svn,
        pce_id=bytes.fromhex(pce_id),
        qe_id=bytes.fromhex(qe_id),
        encrypted_ppid=encrypted_ppid,
        platform_manifest=manifest,
    )
    return Registration(request, state, datetime.fromtimestamp(since, UTC), bytes.fromhex(fmspc))


def _seconds(time: datetime) -> int:
    return int(time.timestamp())
