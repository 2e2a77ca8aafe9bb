"""Platforms that asked a collateral service for PCK certificates, and what their next certificate is asked with.

They live in the file of the `CollateralStore`. An encrypted PPID and a platform manifest identify a machine to Intel:
they are kept because a refresh needs them, and shown to administrators alone. No call here takes longer because many
platforms are registered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.rows import LARGEST, seconds, time_of
from confcom.collateral.store.schema import FORMER_REGISTRATIONS, REGISTRATION_COUNTS, REGISTRATIONS
from confcom.errors import CollateralUnavailable
from confcom.protocols.pcs import PckCertRequest, PckCertsRequest, pck_request

MAX_REGISTRATIONS = 1_000_000
"""Rows; the largest fleets have 100,000 machines with a handful of raw TCBs each."""

MAX_FORMER_MANIFESTS = 64
"""Replaced manifests of one platform: a machine makes one when its keys are made and at each TCB recovery."""
FORMER_AGAIN = 24 * 3600
"""Seconds within which a state that a registration had again is one entry among the former ones."""

PAGE = 200
"""Registrations read at a time; each has a manifest of some 17 kB at most."""

State = Literal["waiting", "unavailable", "cached"]
"""Asked for and not had yet; asked for, and Intel has none for it; in the store."""


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
    certificates. The state began at `began`, and was found again at `since`; `last_seen` is when the platform asked
    last. Both are `since` by default.
    """

    request: PckCertRequest | PckCertsRequest
    state: State
    since: datetime
    fmspc: bytes = b""
    last_seen: datetime | None = None
    began: datetime | None = None

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
        with self._database.change() as connection:
            put_registration(connection, registration)

    def of_platform(self, qe_id: bytes, pce_id: bytes) -> tuple[Registration, ...]:
        """The registrations of one platform, the latest at the front."""
        of = (_C.qe_id == qe_id.hex(), _C.pce_id == pce_id.hex())
        return self._select(sa.select(REGISTRATIONS).where(*of).order_by(_C.since.desc()))

    def page(
        self, state: State, *, fmspcs: Sequence[bytes] = (), after: Place | None = None, limit: int = PAGE
    ) -> tuple[Registration, ...]:
        """The registrations in a state that come after a place, of these FMSPCs; of all where none is named."""
        start = after or Place()
        if not fmspcs:
            return self._select(_after(state, start).limit(limit))
        found: list[Registration] = []
        for fmspc in sorted({fmspc.hex() for fmspc in fmspcs}):
            if fmspc >= start.fmspc and len(found) < limit:
                begin = start if fmspc == start.fmspc else Place(fmspc)
                found += self._select(_after(state, begin).where(_C.fmspc == fmspc).limit(limit - len(found)))
        return tuple(found)

    def pages_due(
        self, state: State, *, until: datetime, ahead: datetime, limit: int = PAGE
    ) -> Iterator[tuple[Registration, ...]]:
        """The registrations in a state whose `since` is not after `until`, the earliest first, in pages.

        Then those with a `since` of `ahead` or later: a clock that was wrong wrote it.
        """
        order = sa.tuple_(_C.since, *_KEY)
        due = sa.select(REGISTRATIONS).where(_C.state == state).order_by(_C.since, *_KEY).limit(limit)
        for first, last in ((-1, seconds(until)), (seconds(ahead), LARGEST)):
            after: tuple[int | str, ...] = (first, *Place()[1:])
            while page := self._select(due.where(order > sa.tuple_(*after), _C.since <= last)):
                yield page
                after = (seconds(page[-1].since), *page[-1].place[1:])

    def count(self, state: State, *, fmspcs: Sequence[bytes] = ()) -> int:
        """How many registrations are in a state."""
        with self._database.read() as connection:
            if not fmspcs:
                return _count(connection, REGISTRATION_COUNTS.c.state == state)
            counted = sa.select(sa.func.count()).where(_C.state == state, _C.fmspc.in_({one.hex() for one in fmspcs}))
            return int(connection.execute(counted).scalar_one())

    def count_all(self) -> int:
        with self._database.read() as connection:
            return _count(connection)

    def _select(self, chosen: sa.Select[Any]) -> tuple[Registration, ...]:
        with self._database.read() as connection:
            return tuple(map(_registration, connection.execute(chosen)))


_C = REGISTRATIONS.c
_KEY = (_C.qe_id, _C.pce_id, _C.cpu_svn, _C.pce_svn)
_IS = [column == sa.bindparam(f"of_{column.name}") for column in _KEY]
_ONE = sa.select(_C.state, _C.began, _C.platform_manifest, _C.last_seen).where(*_IS)


def _after(state: State, place: Place) -> sa.Select[Any]:
    listed = (_C.fmspc, *_KEY)
    return sa.select(REGISTRATIONS).where(_C.state == state, sa.tuple_(*listed) > sa.tuple_(*place)).order_by(*listed)


def put_registration(connection: sa.Connection, registration: Registration) -> None:
    """Keep a registration in the transaction that is open; what it was before goes to the former ones."""
    request, since = registration.request, seconds(registration.since)
    last_seen = since if registration.last_seen is None else seconds(registration.last_seen)
    began = since if registration.began is None else seconds(registration.began)
    values: dict[str, Any] = {
        "encrypted_ppid": request.encrypted_ppid,
        "platform_manifest": request.platform_manifest,
        "fmspc": registration.fmspc.hex() or None,
    }
    values = {name: value for name, value in values.items() if value is not None}
    values |= {"state": registration.state, "since": since}
    own, of = {column.name: value for column, value in zip(_KEY, _key(request), strict=True)}, _of(request)
    found = connection.execute(_ONE, of).first()
    if found is None:
        connection.execute(
            sa.insert(REGISTRATIONS), {"fmspc": "", "last_seen": last_seen, "began": began} | own | values
        )
        _add(connection, registration.state, 1)
    else:
        manifest = values.get("platform_manifest", found.platform_manifest)
        replaced = found.platform_manifest if manifest != found.platform_manifest else None
        if found.state != registration.state or replaced is not None:
            former = own | {"state": found.state, "since": found.began, "platform_manifest": replaced}
            keep_former(connection, former)
            _add(connection, found.state, -1)
            _add(connection, registration.state, 1)
            values["began"] = began
        values |= {"last_seen": max(found.last_seen, last_seen)}
        connection.execute(sa.update(REGISTRATIONS).where(*_IS).values(**values), of)
    if _count(connection) > MAX_REGISTRATIONS:
        raise CollateralUnavailable(
            f"{MAX_REGISTRATIONS} platforms are registered already",
            advice="Remove those that are gone (`confcom collateral remove`), or use a store for each fleet.",
        )


def keep_former(connection: sa.Connection, former: dict[str, Any]) -> bool:
    """Append what a registration was; whether it is new.

    What is equal is there once, so that callers cannot make it grow at will.

    Where a platform has as many manifests as are kept, the oldest goes that led to no certificates; only where all did,
    the oldest of them. So a platform can always be registered again, and manifests that callers with the user token
    make up displace none that upstream took.
    """
    columns = FORMER_REGISTRATIONS.c
    platform = [columns[name] == former[name] for name in ("qe_id", "pce_id")]
    same = [columns[name] == former[name] for name in ("cpu_svn", "pce_svn")]
    same.append(columns.platform_manifest.is_not_distinct_from(former["platform_manifest"]))
    if former["platform_manifest"] is None:
        since = former["since"]
        same += [columns.state == former["state"], columns.since.between(since - FORMER_AGAIN, since + FORMER_AGAIN)]
    if connection.execute(sa.select(columns.id).where(*platform, *same).limit(1)).first() is not None:
        return False
    if former["platform_manifest"] is not None:
        manifests = sa.select(columns.id, columns.state).where(*platform, columns.platform_manifest.is_not(None))
        kept = connection.execute(manifests.order_by(columns.id)).all()
        if len(kept) >= MAX_FORMER_MANIFESTS:
            unproven = [one.id for one in kept if one.state != "cached"]
            if not unproven and former["state"] != "cached":
                return False
            oldest = unproven[0] if unproven else kept[0].id
            connection.execute(sa.delete(FORMER_REGISTRATIONS).where(columns.id == oldest))
    connection.execute(sa.insert(FORMER_REGISTRATIONS), former)
    return True


def uncount(connection: sa.Connection, qe_id: str, pce_id: str) -> None:
    """Take the registrations of a platform, which are removed in this transaction, out of the counts."""
    of = sa.select(_C.state, sa.func.count()).where(_C.qe_id == qe_id, _C.pce_id == pce_id).group_by(_C.state)
    for state, removed in connection.execute(of).all():
        _add(connection, state, -removed)


def _add(connection: sa.Connection, state: str, change: int) -> None:
    connection.execute(_COUNTED, {"of": state, "change": change})


_COUNTED = (
    sa.update(REGISTRATION_COUNTS)
    .where(REGISTRATION_COUNTS.c.state == sa.bindparam("of"))
    .values(registered=REGISTRATION_COUNTS.c.registered + sa.bindparam("change"))
)


def restore_registration(connection: sa.Connection, registration: Registration) -> bool:
    """Keep a registration of another store, unless there is one of the same raw TCB; whether it is new."""
    if connection.execute(_ONE, _of(registration.request)).first() is not None:
        return False
    put_registration(connection, registration)
    return True


def _key(request: PckCertRequest | PckCertsRequest) -> tuple[str, str, str, int]:
    qe_id, pce_id = (request.qe_id or b"").hex(), request.pce_id.hex()
    if isinstance(request, PckCertsRequest):
        return qe_id, pce_id, "", 0
    return qe_id, pce_id, request.cpu_svn.hex(), request.pce_svn


def _of(request: PckCertRequest | PckCertsRequest) -> dict[str, object]:
    return {f"of_{column.name}": value for column, value in zip(_KEY, _key(request), strict=True)}


_REGISTERED = sa.select(sa.func.sum(REGISTRATION_COUNTS.c.registered))


def _count(connection: sa.Connection, *of: sa.ColumnElement[bool]) -> int:
    return int(connection.execute(_REGISTERED.where(*of)).scalar_one())


def _registration(row: Any) -> Registration:  # noqa: ANN401 - of `REGISTRATIONS`
    pce_id, qe_id, cpu_svn, fmspc = map(bytes.fromhex, (row.pce_id, row.qe_id, row.cpu_svn, row.fmspc))
    request = pck_request(pce_id, qe_id, cpu_svn, row.pce_svn, row.encrypted_ppid, row.platform_manifest)
    since, last_seen, began = map(time_of, (row.since, row.last_seen, row.began))
    return Registration(request, row.state, since, fmspc, last_seen, began)
