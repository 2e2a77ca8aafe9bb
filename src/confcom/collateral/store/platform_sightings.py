"""When platforms were met, and at which TCB: sightings are appended, and the latest one says what is current.

A PPID is a lasting identifier of a machine: only its SHA-256 is kept here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert

from confcom.collateral.store.rows import ca_of, tee_of
from confcom.collateral.store.schema import CURRENT_PLATFORMS, PLATFORM_SIGHTINGS, PLATFORMS
from confcom.database.engine import Database
from confcom.formats.pck_extension import PckExtension, PckTcb
from confcom.protocols.pcs import PckCaName, Tee

PAGE = 1000
"""Platforms that are read at a time."""
LATEST = datetime.max.replace(tzinfo=UTC)
SIGHTED_AGAIN = 7 * 24 * 3600
"""Seconds in which a platform that stays at its TCB has one sighting: 100,000 platforms add 5 million rows a year."""


@dataclass(frozen=True, slots=True)
class PlatformGroup:
    """Platforms at the same latest TCB, of one TEE, FMSPC and CA, which are judged alike.

    `seen` has the id of each (SHA-256 of its PPID in hexadecimal digits), and when it was seen last (seconds since
    1970).
    """

    tee: Tee
    fmspc: bytes
    ca: PckCaName
    tcb: PckTcb
    seen: list[tuple[str, int]]


def groups(connection: sa.Connection, at: int) -> tuple[PlatformGroup, ...]:
    """Every platform, in groups, at the TCB at which it was met last by then (seconds since 1970).

    One that was met only later is at the TCB of its first sighting. Times before its last sighting are known to a week
    (`SIGHTED_AGAIN`).
    """
    found: dict[tuple[Any, ...], PlatformGroup] = {}
    for query in (_CURRENT, _AS_OF):
        for id_, last_seen, *facts in connection.execution_options(yield_per=PAGE).execute(query, {"at": at}):
            group = found.get(key := tuple(facts))
            if group is None:
                group = found[key] = _group(*facts)
            group.seen.append((id_, last_seen))
    return tuple(found.values())


def counts(connection: sa.Connection) -> tuple[tuple[PlatformGroup, int], ...]:
    """The number of platforms in each group now; the groups list no platforms."""
    return tuple((_group(*facts), count) for count, *facts in connection.execute(_COUNTED))


def met(connection: sa.Connection) -> Iterator[tuple[Any, list[int]]]:
    """Each TCB at which a platform was met (a row of `PLATFORMS`), and when."""
    for page in connection.execute(_EACH).partitions(PAGE):
        times: dict[int, set[int]] = {row.number: {row.last_seen} - {None} for row in page}
        between = _SEEN.platform.between(page[0].number, page[-1].number)
        for of, seen in connection.execute(sa.select(PLATFORM_SIGHTINGS).where(between)):
            times[of].add(seen)
        yield from ((row, sorted(times[row.number])) for row in page)


def restore_met(connection: sa.Connection, of: Mapping[str, Any], seen: Sequence[int]) -> bool:
    """Keep when another store met a platform at a TCB (`sighted`), in ascending order; whether any is new."""
    number = _number_of(connection, of) or _new_number(connection, of)
    own = PLATFORM_SIGHTINGS.c.platform == number
    known = set(connection.execute(sa.select(PLATFORM_SIGHTINGS.c.seen).where(own)).scalars())
    if new := [{"platform": number, "seen": at} for at in seen if at not in known]:
        connection.execute(sa.insert(PLATFORM_SIGHTINGS), new)
    _set_current(connection, of, number, seen[-1])
    return bool(new)


def observe(
    connection: sa.Connection,
    extension: PckExtension,
    seen: int,
    tee: Tee,
    *,
    claimed: bool = False,
    asked: bool = True,
) -> None:
    """Append a sighting; the TCB of the latest one is the current TCB.

    A lower TCB in the same second belongs to the same set of certificates, and is no sighting. If the platform did not
    ask itself (`asked`), the time of its last sighting stays. Of a TCB that is `claimed` one sighting a week is kept,
    so that callers cannot make the store grow at will.
    """
    # Only the Platform CA writes an instance id into its certificates.
    ca = "processor" if extension.platform_instance_id is None else "platform"
    tcb, values = extension.tcb, sighted(platform_id(extension), tee, extension.fmspc, ca, extension.tcb)
    current = connection.execute(_MET, {"of_id": values["id"], "of_tee": tee}).first()
    if current is not None and not asked:
        seen = current.last_seen
    number = _number_of(connection, values)
    changes = current is None or number != current.number
    if changes and current is not None and seen == current.last_seen and _is_lower(tcb, current):
        return
    number = number or _new_number(connection, values)
    newest = current is None or seen >= current.last_seen
    if changes and newest and current is not None and not claimed:
        _sight(connection, current.number, current.last_seen, 1)
    _sight(connection, number, seen, 1 if changes and newest and not claimed else SIGHTED_AGAIN)
    _set_current(connection, values, number, seen)


def sighted(id_: str, tee: Tee, fmspc: bytes, ca: str, tcb: PckTcb) -> dict[str, Any]:
    """The row of a platform (the SHA-256 of its PPID in hexadecimal digits) at a TCB, without its number."""
    facts = (fmspc.hex(), ca, bytes(tcb.sgx_components), tcb.pce_svn, tcb.cpu_svn)
    return {"id": id_, "tee": tee} | dict(zip(_FACTS, facts, strict=True))


def _number_of(connection: sa.Connection, values: Mapping[str, Any]) -> int | None:
    found = connection.execute(_NUMBER, {f"of_{name}": value for name, value in values.items()}).scalar()
    return None if found is None else int(found)


def _new_number(connection: sa.Connection, values: Mapping[str, Any]) -> int:
    return int(connection.execute(sa.insert(PLATFORMS).returning(PLATFORMS.c.number), values).scalar_one())


def _set_current(connection: sa.Connection, of: Mapping[str, Any], number: int, seen: int) -> None:
    """Note that a platform was met at a TCB, unless it was met later."""
    values = {"id": of["id"], "tee": of["tee"], "platform": number, "last_seen": seen}
    connection.execute(_current(connection.dialect.name), values)


@cache
def _current(dialect: str) -> Insert:
    """Built once: that takes SQLAlchemy longer than running it takes the engines."""
    added, old = Database.insert(dialect, CURRENT_PLATFORMS), CURRENT_PLATFORMS.c
    new = {"platform": added.excluded.platform, "last_seen": added.excluded.last_seen}
    later = old.last_seen <= added.excluded.last_seen
    return added.on_conflict_do_update(index_elements=[old.id, old.tee], set_=new, where=later)


def _sight(connection: sa.Connection, number: int, seen: int, within: int) -> None:
    """Append a sighting at a TCB, unless there is one at most `within` seconds before it."""
    if connection.execute(_LATELY, {"of": number, "after": seen - within, "until": seen}).first() is None:
        connection.execute(sa.insert(PLATFORM_SIGHTINGS), {"platform": number, "seen": seen})


def _is_lower(tcb: PckTcb, than: Any) -> bool:  # noqa: ANN401 - of `_MET`
    pairs = zip(tcb.sgx_components, than.sgx_components, strict=True)
    return tcb.pce_svn <= than.pce_svn and all(mine <= theirs for mine, theirs in pairs)


def note_asked(connection: sa.Connection, id_: str, at: int) -> None:
    """Append a sighting of a platform that asked, at the TCB that it has."""
    met = (CURRENT_PLATFORMS.c.id == id_, CURRENT_PLATFORMS.c.last_seen < at)
    for number in connection.execute(sa.select(CURRENT_PLATFORMS.c.platform).where(*met)).scalars().all():
        _sight(connection, number, at, SIGHTED_AGAIN)
    connection.execute(sa.update(CURRENT_PLATFORMS).where(*met).values(last_seen=at))


def forget(connection: sa.Connection, gone: sa.ColumnElement[bool]) -> int:
    """Remove the sightings of platforms that meet this condition on the current ones; returns their number."""
    of = sa.tuple_(PLATFORMS.c.id, PLATFORMS.c.tee).in_(
        sa.select(CURRENT_PLATFORMS.c.id, CURRENT_PLATFORMS.c.tee).where(gone)
    )
    sighted = PLATFORM_SIGHTINGS.c.platform.in_(sa.select(PLATFORMS.c.number).where(of))
    connection.execute(sa.delete(PLATFORM_SIGHTINGS).where(sighted))
    connection.execute(sa.delete(PLATFORMS).where(of))
    return int(connection.execute(sa.delete(CURRENT_PLATFORMS).where(gone)).rowcount)


def platform_id(extension: PckExtension) -> str:
    """SHA-256 of the PPID in hexadecimal digits."""
    return hashlib.sha256(extension.ppid).hexdigest()


def _group(tee: str, fmspc: str, ca: str, components: bytes, pce_svn: int, cpu_svn: bytes) -> PlatformGroup:
    tcb = PckTcb(tuple(components), pce_svn, cpu_svn)
    return PlatformGroup(tee_of(tee), bytes.fromhex(fmspc), ca_of(ca), tcb, [])


_SEEN = PLATFORM_SIGHTINGS.c
_FACTS = ("fmspc", "ca", "sgx_components", "pce_svn", "cpu_svn")
_AT: sa.ColumnElement[int] = sa.bindparam("at")
_SHOWN = (PLATFORMS.c.tee, *(PLATFORMS.c[name] for name in _FACTS))
_IS_CURRENT = CURRENT_PLATFORMS.c.platform == PLATFORMS.c.number
_SAME = (CURRENT_PLATFORMS.c.id == PLATFORMS.c.id) & (CURRENT_PLATFORMS.c.tee == PLATFORMS.c.tee)
_CURRENT = (
    sa.select(PLATFORMS.c.id, CURRENT_PLATFORMS.c.last_seen, *_SHOWN)
    .join(CURRENT_PLATFORMS, _IS_CURRENT)
    .where(CURRENT_PLATFORMS.c.last_seen <= _AT)
    .order_by(PLATFORMS.c.number)
)
_COUNTED = sa.select(sa.func.count(), *_SHOWN).join(CURRENT_PLATFORMS, _IS_CURRENT).group_by(*_SHOWN)


_MET_SINCE = sa.select(PLATFORMS.c.number).join(CURRENT_PLATFORMS, _SAME).where(CURRENT_PLATFORMS.c.last_seen > _AT)
_BY_THEN = sa.func.max(sa.case((_SEEN.seen <= _AT, _SEEN.seen)))
_TIMES = (
    sa.select(_SEEN.platform, sa.func.coalesce(_BY_THEN, sa.func.min(_SEEN.seen)).label("seen"))
    .where(_SEEN.platform.in_(_MET_SINCE))
    .group_by(_SEEN.platform)
    .subquery()
)
_THEN = sa.select(PLATFORMS, _TIMES.c.seen).join(_TIMES, _TIMES.c.platform == PLATFORMS.c.number).subquery()
"""When platforms that were met since were met at each of their TCBs: last by then, else first."""
_NEAREST = sa.case((_THEN.c.seen <= _AT, -_THEN.c.seen), else_=_THEN.c.seen)
_PLACE = sa.func.row_number().over(partition_by=(_THEN.c.id, _THEN.c.tee), order_by=(_NEAREST, _THEN.c.number.desc()))
_RANKED = sa.select(_THEN, _PLACE.label("place")).subquery()
_AS_OF = (
    sa.select(_RANKED.c.id, _RANKED.c.seen, _RANKED.c.tee, *(_RANKED.c[name] for name in _FACTS))
    .where(_RANKED.c.place == 1)
    .order_by(_RANKED.c.number)
)
_MET = (
    sa.select(PLATFORMS, CURRENT_PLATFORMS.c.last_seen)
    .join(CURRENT_PLATFORMS, _IS_CURRENT)
    .where(*(CURRENT_PLATFORMS.c[name] == sa.bindparam(f"of_{name}") for name in ("id", "tee")))
)
_LATELY = (
    sa.select(_SEEN.seen)
    .where(
        _SEEN.platform == sa.bindparam("of"), _SEEN.seen > sa.bindparam("after"), _SEEN.seen <= sa.bindparam("until")
    )
    .limit(1)
)
_EACH = (
    sa.select(PLATFORMS, CURRENT_PLATFORMS.c.last_seen)
    .join(CURRENT_PLATFORMS, _IS_CURRENT & _SAME, isouter=True)
    .order_by(PLATFORMS.c.number)
)
_NUMBER = sa.select(PLATFORMS.c.number).where(
    *(PLATFORMS.c[name] == sa.bindparam(f"of_{name}") for name in ("id", "tee", *_FACTS))
)
