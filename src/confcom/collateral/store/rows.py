"""Rows of the collateral store and the values they stand for. Transactions are the callers'; queries see one root."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from confcom.collateral.documents import Document, DocumentFacts, DocumentKey, DocumentKind, VerifiedDocument
from confcom.collateral.store.schema import CHAINS, DOCUMENTS, SIGHTINGS, VERSIONS
from confcom.database.engine import Database, LookUp, Query
from confcom.errors import CollateralError
from confcom.protocols.pcs import PckCaName, Tee, Update

# The version of a document that was in force at a time
#
# (1) A number asked for is taken alone. Of `standard` and `early`, the versions that were served under that name.
# (2) Such a name moves to a higher number when Intel promotes one, never back: the number in force at T is the highest
#     that was known by T. A version is known from the time it was first seen under the name; if it was seen only after
#     it had expired (an archive), that time is ignored, and it counts as known from its issue.
# (3) Of the versions with that number or a higher one, those valid at T; the lowest number first, then the latest
#     issue. A lower number is never fallen back to, or an old source could undo a promotion.
# (4) If none is valid at T, the one that was valid nearest to T: the verifier then reports what is stale.


LARGEST = (1 << 63) - 1
"""Both engines'. A CRL may have a number of up to 20 bytes, which is then only shown in the CRL itself."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version: `id` grows with each one that the store takes in; times are seconds since 1970.

    `first_seen` is when it was first served as the set that is asked for, None if it never was.
    """

    id: int
    number: int
    issue_date: int
    next_update: int
    first_seen: int | None

    def valid(self, at: int) -> bool:
        """Both ends included."""
        return self.issue_date <= at <= self.next_update

    def distance(self, at: int) -> int:
        """Seconds between `at` and its validity."""
        return max(self.issue_date - at, at - self.next_update, 0)

    def known_since(self) -> int:
        """See (2)."""
        seen = self.issue_date if self.first_seen is None else self.first_seen
        return seen if seen <= self.next_update else self.issue_date


def choose(candidates: Sequence[Candidate], *, at: int, update: Update | None) -> Candidate | None:
    """The version in force at `at` (seconds since 1970); None if there is no candidate of the set."""
    # (1)
    if isinstance(update, int):
        pool = [candidate for candidate in candidates if candidate.number == update]
    else:
        pool = [candidate for candidate in candidates if candidate.first_seen is not None]
    if not pool:
        return None
    if update in ("standard", "early"):
        # (2)
        floor = _number_in_force(pool, at)
        pool = [candidate for candidate in pool if candidate.number >= floor]
    # (3)
    valid = [candidate for candidate in pool if candidate.valid(at)]
    if valid and update is not None:
        return max(valid, key=lambda candidate: (-candidate.number, candidate.issue_date, candidate.id))
    if valid:
        # Numbers of CRLs only count them: the latest issue.
        return max(valid, key=lambda candidate: (candidate.issue_date, candidate.number, candidate.id))
    # (4)
    return min(pool, key=lambda candidate: (candidate.distance(at), -candidate.issue_date, -candidate.id))


def _number_in_force(pool: Sequence[Candidate], at: int) -> int:
    known = [candidate.number for candidate in pool if candidate.known_since() <= at]
    return max(known) if known else min(candidate.number for candidate in pool)


@dataclass(frozen=True, slots=True)
class Sighting:
    """When and where a version was served. `served_as` is `standard`, `early`, a number as text, or empty for CRLs."""

    served_as: str
    source: str
    seen: datetime


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version of a document; `expires` is its next update, or earlier if a certificate of its chain ends first."""

    id: int
    key: DocumentKey
    digest: bytes
    facts: DocumentFacts
    expires: datetime
    sightings: tuple[Sighting, ...]


def served_as(document: VerifiedDocument) -> str:
    """The name of the set that a document was asked for as; empty where there are no sets."""
    update = document.document.key.update
    return "" if update is None else str(update)


def keep_version(connection: sa.Connection, verified: VerifiedDocument, sightings: Sequence[Sighting]) -> bool:
    """Keep a version and when it was seen; whether it is new."""
    document, facts = verified.document, verified.facts
    columns = _columns(document.key)
    connection.execute(Database.insert(connection.dialect.name, DOCUMENTS).on_conflict_do_nothing(), columns)
    of, digest = connection.execute(_DOCUMENT_ID, columns).scalar_one(), document.digest()
    values = {
        "document": of,
        "digest": digest,
        "root": verified.root.public_key,
        "body": document.body,
        "chain": keep_chain(connection, document.issuer_chain) if document.issuer_chain else None,
        "number": min(facts.number, LARGEST),
        "issue_date": seconds(facts.issue_date),
        "next_update": seconds(facts.next_update),
        "expires": seconds(verified.expires),
    }
    known = sa.select(VERSIONS.c.id).where(VERSIONS.c.document == of, VERSIONS.c.digest == digest)
    found = connection.execute(known).scalar()
    version = found or connection.execute(sa.insert(VERSIONS).returning(VERSIONS.c.id), values).scalar_one()
    rows = [
        {"version": version, "served_as": one.served_as, "seen": seconds(one.seen), "source": one.source}
        for one in sightings
    ]
    if rows:
        connection.execute(Database.insert(connection.dialect.name, SIGHTINGS).on_conflict_do_nothing(), rows)
    return found is None


def keep_chain(connection: sa.Connection, pem: bytes) -> int:
    """The id of a chain, which is stored once however many documents came with it."""
    digest = hashlib.sha256(pem).digest()
    known = connection.execute(_CHAIN_ID, {"digest": digest}).scalar()
    if known is None:
        known = connection.execute(
            sa.insert(CHAINS).returning(CHAINS.c.id), {"digest": digest, "pem": pem}
        ).scalar_one()
    return int(known)


def version_in_force(look_up: LookUp, key: DocumentKey, at: datetime, root: bytes) -> StoredVersion | None:
    """The version that was in force at `at`, with every time that it was seen; None where there is none of the set."""
    ((found, _),) = _in_force(look_up, [key], at, root, likely=False)
    if found is None:
        return None
    ((*row,),) = look_up(_VERSION, {"version": found.id})
    return _stored(key, row, look_up(_SEEN, {"of": found.id}))


def documents_in_force(
    look_up: LookUp, keys: Sequence[DocumentKey], at: datetime, root: bytes
) -> list[tuple[Document, datetime] | None]:
    """Per key the version that was in force at `at`, and when it expires; None as above. All are of one moment."""
    return [
        None if one is None else _document(key, one.id, *content) if content else load_document(look_up, one.id, key)
        for key, (one, content) in zip(keys, _in_force(look_up, keys, at, root, likely=True), strict=True)
    ]


def _in_force(
    look_up: LookUp, keys: Sequence[DocumentKey], at: datetime, root: bytes, *, likely: bool
) -> list[tuple[Candidate | None, Sequence[Any]]]:
    """Per key what was in force; with `likely` also the columns of `_BODY` of that version, if it was issued last.

    So one query usually gives the document, without reading the content of other versions.
    """
    values: dict[str, Any] = {"root": root, "issued_by": seconds(at) if likely else -1}
    for place, key in enumerate(keys):
        number = key.update if isinstance(key.update, int) else -1
        named = _columns(key) | {"label": "" if key.update is None else str(key.update), "number": number}
        values |= {f"{name}{place}": value for name, value in named.items()}
    found: list[list[Candidate]] = [[] for _ in keys]
    contents: dict[int, Sequence[Any]] = {}
    for place, id_, number, issued, until, seen, *content in look_up(_candidates(len(keys)), values):
        found[place].append(Candidate(id_, number, issued, until, seen))
        if content[0] is not None:
            contents[id_] = content
    chosen = [choose(of_key, at=seconds(at), update=key.update) for key, of_key in zip(keys, found, strict=True)]
    return [(one, () if one is None else contents.get(one.id, ())) for one in chosen]


def versions_of(connection: sa.Connection, key: DocumentKey, root: bytes) -> Iterator[StoredVersion]:
    """The versions that were served as the key's set, or have its number; latest issue first."""
    for row in connection.execute(_VERSIONS, _columns(key) | {"root": root}):
        found = _stored(key, row, connection.execute(_SIGHTINGS, {"of": row.id}))
        served = any(sighting.served_as == key.update for sighting in found.sightings)
        if key.update is None or (found.facts.number == key.update if isinstance(key.update, int) else served):
            yield found


def _stored(key: DocumentKey, row: Sequence[Any], seen: Iterable[Sequence[Any]]) -> StoredVersion:
    version, digest, issue, update, number, expires = row
    sightings = tuple(Sighting(label, source, time_of(at)) for label, source, at in seen)
    facts = DocumentFacts(time_of(issue), time_of(update), number)
    return StoredVersion(version, key, digest, facts, time_of(expires), sightings)


def load_document(look_up: LookUp, version: int, key: DocumentKey) -> tuple[Document, datetime]:
    """The bytes of a version, compared with the digest that they were stored under, and when it expires."""
    found = look_up(_BODY, {"version": version})
    if not found:
        raise CollateralError(f"version {version} of the {key} is not in the store")
    return _document(key, version, *found[0])


def _document(
    key: DocumentKey, version: int, body: bytes, pem: bytes | None, digest: bytes, expires: int
) -> tuple[Document, datetime]:
    document = Document(key, body, pem or b"")
    if document.digest() != digest:
        # The engines have no checksums of their own; the database layer calls this damage.
        raise ValueError(f"the bytes of version {version} of the {key} have changed")
    return document, time_of(expires)


def all_keys(connection: sa.Connection, root: bytes) -> list[DocumentKey]:
    """Every document, once for each set that it was served as."""
    return [_key(*row) for row in connection.execute(_KEYS, {"root": root})]


_KEY = ("kind", "tee", "fmspc", "ca")
_OF_KEY = [DOCUMENTS.c[name] == sa.bindparam(name) for name in _KEY]
_DOCUMENT_ID = sa.select(DOCUMENTS.c.id).where(*_OF_KEY)
_CHAIN_ID = sa.select(CHAINS.c.id).where(CHAINS.c.digest == sa.bindparam("digest"))
_FACTS = (
    VERSIONS.c.id,
    VERSIONS.c.digest,
    VERSIONS.c.issue_date,
    VERSIONS.c.next_update,
    VERSIONS.c.number,
    VERSIONS.c.expires,
)
_VERSIONS = (
    sa.select(*_FACTS)
    .where(VERSIONS.c.document == _DOCUMENT_ID.scalar_subquery(), VERSIONS.c.root == sa.bindparam("root"))
    .order_by(VERSIONS.c.issue_date.desc(), VERSIONS.c.id.desc())
)
_VERSION = Query(sa.select(*_FACTS).where(VERSIONS.c.id == sa.bindparam("version")))


@cache
def _candidates(keys: int) -> Query:
    """The candidates for so many documents. Rows begin with the place of their document, parameters end with it."""
    other, likely = VERSIONS.alias(), VERSIONS.alias()

    def of(place: int) -> sa.Select[Any]:
        def seen_as(version: sa.ColumnElement[int]) -> Sequence[sa.ColumnElement[bool]]:
            return SIGHTINGS.c.version == version, SIGHTINGS.c.served_as == sa.bindparam(f"label{place}")

        first_seen = sa.select(sa.func.min(SIGHTINGS.c.seen)).where(*seen_as(VERSIONS.c.id))
        of_set = (other.c.number == sa.bindparam(f"number{place}")) | sa.exists().where(*seen_as(other.c.id))
        own = [DOCUMENTS.c[name] == sa.bindparam(f"{name}{place}") for name in _KEY]
        document = sa.select(DOCUMENTS.c.id).where(*own).scalar_subquery()
        latest = (
            sa.select(other.c.id)
            .where(other.c.document == document, other.c.root == sa.bindparam("root"), of_set)
            .where(other.c.issue_date <= sa.bindparam("issued_by"))
            .order_by(other.c.issue_date.desc(), other.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        return (
            sa.select(sa.literal_column(str(place)), VERSIONS.c.id, VERSIONS.c.number, VERSIONS.c.issue_date)
            .add_columns(VERSIONS.c.next_update, first_seen.scalar_subquery())
            .add_columns(likely.c.body, CHAINS.c.pem, likely.c.digest, likely.c.expires)
            .join_from(VERSIONS, likely, (likely.c.id == VERSIONS.c.id) & (VERSIONS.c.id == latest), isouter=True)
            .join(CHAINS, CHAINS.c.id == likely.c.chain, isouter=True)
            .where(VERSIONS.c.document == document, VERSIONS.c.root == sa.bindparam("root"))
        )

    return Query(sa.union_all(*map(of, range(keys))))


_SIGHTINGS = (
    sa.select(SIGHTINGS.c.served_as, SIGHTINGS.c.source, SIGHTINGS.c.seen)
    .where(SIGHTINGS.c.version == sa.bindparam("of"))
    .order_by(SIGHTINGS.c.seen, SIGHTINGS.c.served_as, SIGHTINGS.c.source)
)
_SEEN = Query(_SIGHTINGS)
_BODY = Query(
    sa.select(VERSIONS.c.body, CHAINS.c.pem, VERSIONS.c.digest, VERSIONS.c.expires)
    .join_from(VERSIONS, CHAINS, CHAINS.c.id == VERSIONS.c.chain, isouter=True)
    .where(VERSIONS.c.id == sa.bindparam("version"))
)
_NAMES = (*(DOCUMENTS.c[name] for name in _KEY), SIGHTINGS.c.served_as)
_KEYS = (
    sa.select(*_NAMES)
    .distinct()
    .join_from(DOCUMENTS, VERSIONS, VERSIONS.c.document == DOCUMENTS.c.id)
    .join(SIGHTINGS, SIGHTINGS.c.version == VERSIONS.c.id)
    .where(VERSIONS.c.root == sa.bindparam("root"))
    .order_by(*_NAMES[:4], SIGHTINGS.c.served_as.desc())
)


def seconds(time: datetime) -> int:
    """Whole seconds since 1970."""
    return int(time.timestamp())


def time_of(since_1970: int) -> datetime:
    """The time, in UTC; what is no time is a `ValueError`."""
    try:
        return datetime.fromtimestamp(since_1970, UTC)
    except OSError as error:
        raise ValueError(f"{since_1970} is no time") from error


def tee_of(text: str) -> Tee:
    """A TEE as it is stored."""
    return "tdx" if text == "tdx" else "sgx"


def ca_of(text: str) -> PckCaName:
    """A CA as it is stored."""
    return "processor" if text == "processor" else "platform"


def _columns(key: DocumentKey) -> dict[str, Any]:
    return {"kind": key.kind.value, "tee": key.tee or "", "fmspc": (key.fmspc or b"").hex(), "ca": key.ca or ""}


def update_of(label: str) -> Update | None:
    """The set that a version was served as (`Sighting.served_as`)."""
    match label:
        case "":
            return None
        case "standard" | "early":
            return label
        case _:
            return int(label)


def _key(kind: str, tee: str, fmspc: str, ca: str, label: str) -> DocumentKey:
    return DocumentKey(
        DocumentKind(kind),
        tee=tee_of(tee) if tee else None,
        fmspc=bytes.fromhex(fmspc) or None,
        ca=ca_of(ca) if ca else None,
        update=update_of(label),
    )
