"""Rows of the collateral store and the values they stand for. Transactions are the callers'; queries see one root."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from confcom.collateral.as_of import Candidate, choose
from confcom.collateral.documents import Document, DocumentKey, DocumentKind
from confcom.collateral.verified_document import DocumentFacts, VerifiedDocument
from confcom.errors import CollateralError
from confcom.protocols.pcs import Update


@dataclass(frozen=True, slots=True)
class Sighting:
    """When and where a version was served. `served_as` is `standard`, `early`, a number as text, or empty for CRLs."""

    served_as: str
    source: str
    first_seen: datetime
    last_seen: datetime


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


def keep_version(connection: sqlite3.Connection, verified: VerifiedDocument, sightings: Sequence[Sighting]) -> bool:
    """Keep a version and when it was seen; whether it is new."""
    document, facts = verified.document, verified.facts
    connection.execute(
        "INSERT OR IGNORE INTO documents (kind, tee, fmspc, ca) VALUES (?, ?, ?, ?)", _columns(document.key)
    )
    of, digest = _document_id(connection, document.key), document.digest()
    chain = keep_chain(connection, document.issuer_chain) if document.issuer_chain else None
    times = (seconds(facts.issue_date), seconds(facts.next_update), seconds(verified.expires))
    new = connection.execute(
        "INSERT OR IGNORE INTO versions "
        "(document, digest, root, body, chain, number, issue_date, next_update, expires) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (of, digest, verified.root.public_key, document.body, chain, facts.number, *times),
    ).rowcount
    row = connection.execute("SELECT id FROM versions WHERE document = ? AND digest = ?", (of, digest)).fetchone()
    connection.executemany(
        "INSERT INTO sightings VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)",
        [
            (row[0], seen.served_as, seen.source, seconds(seen.first_seen), seconds(seen.last_seen))
            for seen in sightings
        ],
    )
    return new == 1


def keep_chain(connection: sqlite3.Connection, pem: bytes) -> int:
    """The id of a chain, which is stored once however many documents came with it."""
    digest = hashlib.sha256(pem).digest()
    connection.execute("INSERT OR IGNORE INTO chains (digest, pem) VALUES (?, ?)", (digest, pem))
    return int(connection.execute("SELECT id FROM chains WHERE digest = ?", (digest,)).fetchone()[0])


def id_in_force(connection: sqlite3.Connection, key: DocumentKey, at: datetime, root: bytes) -> int | None:
    """The id of the version that was in force at `at`; None where there is none of the set."""
    label = "" if key.update is None else str(key.update)
    rows = connection.execute(
        "SELECT id, number, issue_date, next_update, "
        "(SELECT min(first_seen) FROM sightings WHERE version = versions.id AND served_as = ?) "
        "FROM versions WHERE document = ? AND root = ?",
        (label, _document_id(connection, key), root),
    )
    chosen = choose([Candidate(*row) for row in rows], at=seconds(at), update=key.update)
    return None if chosen is None else chosen.id


def document_in_force(connection: sqlite3.Connection, key: DocumentKey, at: datetime, root: bytes) -> Document | None:
    """The version that was in force at `at`, with its bytes."""
    version = id_in_force(connection, key, at, root)
    return None if version is None else load_document(connection, version, key)


def versions_of(connection: sqlite3.Connection, key: DocumentKey, root: bytes) -> Iterator[StoredVersion]:
    """The versions that were served as the key's set, or have its number; the latest issue first."""
    rows = connection.execute(
        "SELECT id, digest, issue_date, next_update, number, expires FROM versions "
        "WHERE document = ? AND root = ? ORDER BY issue_date DESC, id DESC",
        (_document_id(connection, key), root),
    ).fetchall()
    for version, digest, issue, update, number, expires in rows:
        seen = connection.execute(
            "SELECT served_as, source, first_seen, last_seen FROM sightings WHERE version = ? "
            "ORDER BY first_seen, served_as, source",
            (version,),
        ).fetchall()
        sightings = tuple(Sighting(label, source, time_of(first), time_of(last)) for label, source, first, last in seen)
        if _is_of(key, number, sightings):
            facts = DocumentFacts(time_of(issue), time_of(update), number)
            yield StoredVersion(version, key, digest, facts, time_of(expires), sightings)


def load_document(connection: sqlite3.Connection, version: int, key: DocumentKey) -> Document:
    """The bytes of a version, compared with the digest that they were stored under."""
    row = connection.execute(
        "SELECT body, coalesce(pem, x''), versions.digest FROM versions LEFT JOIN chains ON chains.id = chain "
        "WHERE versions.id = ?",
        (version,),
    ).fetchone()
    if row is None:
        raise CollateralError(f"version {version} of the {key} is not in the store")
    document = Document(key, row[0], row[1])
    if document.digest() != row[2]:
        # SQLite has no checksums of its own; the database layer calls this damage.
        raise ValueError(f"the bytes of version {version} of the {key} have changed")
    return document


def all_keys(connection: sqlite3.Connection, root: bytes) -> list[DocumentKey]:
    """Every document, once for each set that it was served as."""
    rows = connection.execute(
        "SELECT DISTINCT d.kind, d.tee, d.fmspc, d.ca, s.served_as FROM documents d "
        "JOIN versions v ON v.document = d.id JOIN sightings s ON s.version = v.id WHERE v.root = ? "
        "ORDER BY d.kind, d.tee, d.fmspc, d.ca, s.served_as DESC",
        (root,),
    ).fetchall()
    return [_key(row) for row in rows]


def seconds(time: datetime) -> int:
    """Whole seconds since 1970."""
    return int(time.timestamp())


def time_of(since_1970: int) -> datetime:
    """The time, in UTC; what is no time is a `ValueError`."""
    try:
        return datetime.fromtimestamp(since_1970, UTC)
    except OSError as error:
        raise ValueError(f"{since_1970} is no time") from error


def _document_id(connection: sqlite3.Connection, key: DocumentKey) -> int | None:
    row = connection.execute(
        "SELECT id FROM documents WHERE kind = ? AND tee = ? AND fmspc = ? AND ca = ?", _columns(key)
    ).fetchone()
    return None if row is None else int(row[0])


def _is_of(key: DocumentKey, number: int, sightings: Sequence[Sighting]) -> bool:
    if isinstance(key.update, int):
        return number == key.update
    return key.update is None or any(sighting.served_as == key.update for sighting in sightings)


def _columns(key: DocumentKey) -> tuple[str, str, str, str]:
    return key.kind.value, key.tee or "", (key.fmspc or b"").hex(), key.ca or ""


def _key(row: tuple[str, str, str, str, str]) -> DocumentKey:
    kind, tee, fmspc, ca, label = row
    update: Update | None = None
    if label:
        update = "standard" if label == "standard" else "early" if label == "early" else int(label)
    return DocumentKey(
        DocumentKind(kind),
        tee=None if not tee else "tdx" if tee == "tdx" else "sgx",
        fmspc=bytes.fromhex(fmspc) or None,
        ca=None if not ca else "processor" if ca == "processor" else "platform",
        update=update,
    )
