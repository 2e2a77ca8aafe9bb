"""Warnings of a collateral store: expiry, missing documents, platforms that the next TCB promotion makes OutOfDate."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from confcom.appraisal.tcb import Shortfall, match_platform, shortfalls
from confcom.collateral.documents import Dates, DocumentKey, DocumentKind, rfc3339
from confcom.collateral.store.platform_sightings import PlatformGroup
from confcom.collateral.store.rows import time_of
from confcom.collateral.store.store import CollateralStore
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo, TcbStatus
from confcom.protocols.pcs import TcbSets, Tee, Update

_OLD = (TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED, TcbStatus.REVOKED, None)


@dataclass(frozen=True, slots=True)
class DocumentStatus:
    """The version of a document that is in force; `expires` heeds its certificates too. Negative seconds: expired."""

    key: DocumentKey
    number: int
    issue_date: datetime
    expires: datetime
    seconds_left: int
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class MissingDocument:
    """A document that the quotes of a known FMSPC (6 bytes) cannot be judged without.

    `key` and `fmspc` are None for what a store lacks that knows no FMSPC: any TCB info.
    """

    key: DocumentKey | None
    fmspc: bytes | None
    tee: Tee


@dataclass(frozen=True, slots=True)
class Judged:
    """What a set says of a TCB. `status` is None below every level, both are None without a TCB info."""

    number: int | None
    status: TcbStatus | None

    @property
    def out_of_date(self) -> bool:
        """Whether such platforms are refused, or only accepted by policies for old ones."""
        return self.number is not None and self.status in _OLD


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    """Platforms that were seen at one TCB: under Intel's sets, and under those that clients get (`served`, by group).

    `shortfall` is the first component that is too low, under the coming set if that judges worse. Of a TD's TCB only
    what the platform contributes is known here; its TDX module is judged with its quotes. `promotion` is when Intel may
    be expected to make the coming set the standard one.
    """

    group: PlatformGroup
    standard: Judged
    early: Judged
    served: Mapping[str, Judged]
    shortfall: Shortfall | None
    promotion: datetime | None

    @property
    def to_restart(self) -> bool:
        """Whether they have yet to come back with the TCB that the newest set asks for: BIOS, microcode, a restart."""
        return self.out_of_date or self.falls_behind

    @property
    def out_of_date(self) -> bool:
        """Whether they are out of date already, for some clients."""
        return any(judged.out_of_date for judged in self.served.values())

    @property
    def falls_behind(self) -> bool:
        """Whether the coming set makes them out of date for some clients."""
        return any(self.state_of(clients) == "falls_behind" for clients in self.served)

    def state_of(self, clients: str) -> str:
        """`current`, `falls_behind` or `out_of_date` for clients of a group."""
        judged = self.served[clients]
        if judged.out_of_date:
            return "out_of_date"
        return "falls_behind" if self.early.out_of_date and self.early.number != judged.number else "current"


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The state of a store at a time, for clients that get `sets`."""

    now: datetime
    sets: TcbSets
    documents: tuple[DocumentStatus, ...]
    missing: tuple[MissingDocument, ...]
    platforms: tuple[PlatformStatus, ...]

    def expiring(self, min_validity: timedelta) -> tuple[DocumentStatus, ...]:
        """The documents with less time left than that."""
        return tuple(document for document in self.documents if document.seconds_left < min_validity.total_seconds())

    @property
    def not_yet_valid(self) -> tuple[DocumentStatus, ...]:
        """The documents that were issued after `now`: what is in force then is not in the store."""
        return tuple(document for document in self.documents if document.issue_date > self.now)

    @property
    def clock_problem(self) -> str:
        """Why a clock that shows `now` must be wrong; empty if it need not be."""
        dates = Dates.of((document.issue_date, document.expires) for document in self.documents)
        return "" if dates is None else dates.clock_problem(self.now)

    @property
    def falling_behind(self) -> tuple[PlatformStatus, ...]:
        """The platforms that the coming set makes out of date."""
        return tuple(platform for platform in self.platforms if platform.falls_behind)


STANDARD = TcbSets()
"""Intel's standard set for all clients."""
PROMOTION = timedelta(weeks=6)
"""Time from the day on which Intel serves a set as `early` until it is the standard one (fleet.md §2.4)."""


def store_status(
    store: CollateralStore, now: datetime, *, fmspcs: frozenset[bytes] = frozenset(), sets: TcbSets = STANDARD
) -> StoreStatus:
    """The status of every document in force at `now` and of every platform seen; with `fmspcs`, of theirs alone.

    `sets` are what the clients of a service get.
    """
    keys = [key for key in store.document_keys() if key.fmspc is None or not fmspcs or key.fmspc in fmspcs]
    platforms = [group for group in store.platforms.groups(now) if not fmspcs or group.fmspc in fmspcs]
    infos = _TcbInfos(store, now, sets)

    def has(key: DocumentKey | None) -> bool:
        """A set given by number may have been served under its name alone."""
        return key is not None and isinstance(key.update, int) and store.in_force(key, at=now) is not None

    return StoreStatus(
        now=now,
        sets=sets,
        documents=tuple(_documents(store, keys, now)),
        missing=tuple(dict.fromkeys(one for one in _missing(set(keys), platforms, fmspcs, sets) if not has(one.key))),
        platforms=tuple(map(infos.judge, platforms)),
    )


def fleet_counts(store: CollateralStore, now: datetime, sets: TcbSets = STANDARD) -> dict[tuple[str, str], int]:
    """How many platforms are `current`, `falls_behind` or `out_of_date`, for the clients of each group."""
    infos, states = _TcbInfos(store, now, sets), ("current", "falls_behind", "out_of_date")
    counts = {(clients, state): 0 for clients in sets.by_group for state in states}
    for group, count in store.platforms.counts():
        found = infos.judge(group)
        for clients in found.served:
            counts[clients, found.state_of(clients)] += count
    return counts


def status_json(status: StoreStatus, *, min_validity: timedelta, clock: bool = True) -> Iterator[str]:
    """The status for machines, in pieces of JSON: times in RFC 3339, bytes in hexadecimal digits.

    `clock`: `now` is the time of this machine's clock. A fleet is not held in memory as JSON: it would be hundreds of
    megabytes.
    """
    head = {
        "now": rfc3339(status.now),
        "min_validity_seconds": int(min_validity.total_seconds()),
        "sets": {clients: str(update) for clients, update in status.sets.by_group.items()},
        "expiring": [_document_dict(document) for document in status.expiring(min_validity)],
        "not_yet_valid": [_document_dict(document) for document in status.not_yet_valid],
        "clock_problem": (clock and status.clock_problem) or None,
        "missing": [_missing_dict(entry) for entry in status.missing],
        "falling_behind": _ids(status.falling_behind),
        "to_restart": _ids(entry for entry in status.platforms if entry.to_restart),
        "documents": [_document_dict(document) for document in status.documents],
    }
    yield json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "platforms": ['
    separator = "\n"
    for entry in status.platforms:
        shared = textwrap.indent(json.dumps(_group_dict(entry), indent=2), " " * 4).removeprefix("    {\n")
        for id_, last_seen in entry.group.seen:
            own = f'      "id": "{id_}",\n      "last_seen": "{rfc3339(time_of(last_seen))}",\n'
            yield f"{separator}    {{\n{own}{shared}"
            separator = ",\n"
    yield "\n  ]\n}\n" if status.platforms else "]\n}\n"


def _ids(entries: Iterable[PlatformStatus]) -> list[str]:
    return [id_ for entry in entries for id_, _ in entry.group.seen]


def _documents(store: CollateralStore, keys: Iterable[DocumentKey], now: datetime) -> Iterator[DocumentStatus]:
    found = []
    for key in keys:
        version = store.in_force(key, at=now)
        if version is not None:
            left = int((version.expires - now).total_seconds())
            seen = max(sighting.seen for sighting in version.sightings)
            found.append(
                DocumentStatus(key, version.facts.number, version.facts.issue_date, version.expires, left, seen)
            )
    yield from sorted(found, key=lambda document: (document.expires, str(document.key)))


def _missing(
    keys: set[DocumentKey], platforms: Iterable[PlatformGroup], fmspcs: frozenset[bytes], sets: TcbSets
) -> Iterator[MissingDocument]:
    needs = sorted(_needs(keys, platforms, fmspcs, sets), key=lambda need: need[:2])
    for fmspc, tee, needed in needs:
        for key in sorted({*needed, DocumentKey.root_ca_crl()} - keys, key=str):
            yield MissingDocument(key, fmspc, tee)
    if not needs:
        yield MissingDocument(None, None, "sgx")


def _needs(
    keys: set[DocumentKey], platforms: Iterable[PlatformGroup], fmspcs: frozenset[bytes], sets: TcbSets
) -> Iterator[tuple[bytes, Tee, set[DocumentKey]]]:
    # Which CA certified the platforms of a FMSPC is known only when one was seen; before, any list has to do.
    any_crl = set() if any(key.kind is DocumentKind.PCK_CRL for key in keys) else {DocumentKey.pck_crl("platform")}
    named = set()
    for key in keys:
        if key.kind is DocumentKind.TCB_INFO and key.fmspc is not None and key.tee is not None:
            named.add(key.fmspc)
            # A set is complete with the identity of the same set.
            yield key.fmspc, key.tee, {DocumentKey(DocumentKind.QE_IDENTITY, tee=key.tee, update=key.update), *any_crl}
    for known in platforms:
        named.add(known.fmspc)
        yield known.fmspc, known.tee, {*_of_sets(known.tee, known.fmspc, sets), DocumentKey.pck_crl(known.ca)}
    for fmspc in fmspcs - named:
        yield fmspc, "sgx", {*_of_sets("sgx", fmspc, sets), *any_crl}


def _of_sets(tee: Tee, fmspc: bytes, sets: TcbSets) -> Iterator[DocumentKey]:
    for update in sets.served:
        yield DocumentKey.tcb_info(tee, fmspc, update)
        yield DocumentKey.qe_identity(tee, update)


class _TcbInfos:
    """TCB infos in force, read once each, and what they say of the TCBs of a fleet."""

    def __init__(self, store: CollateralStore, now: datetime, sets: TcbSets) -> None:
        self._sets = sets
        self._store = store
        self._now = now
        self._found: dict[DocumentKey, TcbInfo | None] = {}
        self._promotions: dict[DocumentKey, datetime | None] = {}

    def judge(self, known: PlatformGroup) -> PlatformStatus:
        """The status of platforms now and under the coming set."""

        def judged(update: Update) -> Judged:
            info = self._get(DocumentKey.tcb_info(known.tee, known.fmspc, update))
            if info is None:
                return Judged(None, None)
            level = match_platform(known.tcb, None, info)
            return Judged(info.tcb_evaluation_data_number, None if level is None else level.tcb_status)

        standard, early = judged("standard"), judged("early")
        served = {clients: judged(update) for clients, update in self._sets.by_group.items()}
        worse = early.number is not None and (served[""].number is None or early.status in _OLD)
        early_key = DocumentKey.tcb_info(known.tee, known.fmspc, "early")
        decisive = self._get(early_key if worse else DocumentKey.tcb_info(known.tee, known.fmspc, self._sets.default))
        lacking = () if decisive is None else shortfalls(known.tcb, None, decisive)
        coming = early.number is not None and standard.number != early.number
        promotion = self._promotion(early_key, early.number) if coming else None
        return PlatformStatus(known, standard, early, served, next(iter(lacking), None), promotion)

    def _get(self, key: DocumentKey) -> TcbInfo | None:
        if key not in self._found:
            version = self._store.in_force(key, at=self._now)
            body = None if version is None else self._store.load(version).body
            self._found[key] = None if body is None else SignedTcbInfo.parse(body).tcb_info()
        return self._found[key]

    def _promotion(self, key: DocumentKey, number: int | None) -> datetime | None:
        if key not in self._promotions:
            versions = (version for version in self._store.history(key) if version.facts.number == number)
            seen = [one.seen for version in versions for one in version.sightings if one.served_as == "early"]
            self._promotions[key] = min(seen) + PROMOTION if seen else None
        return self._promotions[key]


def _missing_dict(entry: MissingDocument) -> dict[str, Any]:
    fields = dict.fromkeys(("tee", "fmspc", "ca", "update")) if entry.key is None else entry.key.as_dict()
    for_fmspc = None if entry.fmspc is None else entry.fmspc.hex()
    return {"kind": DocumentKind.TCB_INFO.value} | fields | {"for_fmspc": for_fmspc}


def _document_dict(document: DocumentStatus) -> dict[str, Any]:
    return document.key.as_dict() | {
        "number": document.number,
        "issue_date": rfc3339(document.issue_date),
        "expires": rfc3339(document.expires),
        "seconds_left": document.seconds_left,
        "last_seen": rfc3339(document.last_seen),
    }


def _judged_dict(judged: Judged) -> dict[str, Any]:
    return {"number": judged.number, "tcb_status": judged.status}


def _group_dict(entry: PlatformStatus) -> dict[str, Any]:
    """What is the same for every platform of a group."""
    group, lacking = entry.group, entry.shortfall
    return {
        "tee": group.tee,
        "fmspc": group.fmspc.hex(),
        "ca": group.ca,
        "standard": _judged_dict(entry.standard),
        "early": _judged_dict(entry.early),
        "served": {
            clients: _judged_dict(judged) | {"state": entry.state_of(clients)}
            for clients, judged in entry.served.items()
        },
        "falls_behind": entry.falls_behind,
        "to_restart": entry.to_restart,
        "promotion_expected": None if entry.promotion is None else rfc3339(entry.promotion),
        "shortfall": None
        if lacking is None
        else {
            "component": lacking.name,
            "found": lacking.found,
            "needed": lacking.needed,
            "advice": lacking.advice,
        },
    }
