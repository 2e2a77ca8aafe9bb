"""Rows of the collateral store and the values they stand for. Transactions are the callers'; queries see one root."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from confcom.collateral.documents import Document, DocumentFacts, DocumentKey, DocumentKind, VerifiedDocument
from confcom.errors import CollateralError
from confcom.protocols.pcs import Update

# The version of a document that was in force at a time
#
# (1) A number asked for is taken alone. Of `standard` and `early`, the versions that were served under that name.
# (2) Such a name moves to a higher number when Intel promotes one, never back: the number in force at T is the highest
#     that was known by T. A version is known from the time it was first seen under the name; if it was seen only after
#     it had expired (an archive), that time is ignored, and it counts as known from its issue.
# (3) Of the versions with that number or a higher one, those valid at T; the lowest number first, then the latest
#     issue. A lower number is never fallen back to, or an old source could undo a promotion.
# (4) If none is valid at T, the one that was valid nearest to T: the verifier then reports what is stale.


_LARGEST = (1 << 63) - 1
"""SQLite's. A CRL may have a number of up to 20 bytes, which is then only shown in the CRL itself."""


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
        (of, digest, verified.root.public_key, document.body, chain, min(facts.number, _LARGEST), *times),
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


def versions_of(
    connection: sqlite3.Connection, key: DocumentKey, root: bytes, *, only: int | None = None
) -> Iterator[StoredVersion]:
    """The versions that were served as the key's set, or have its number; latest issue first. `only`: one id."""
    rows = connection.execute(
        "SELECT id, digest, issue_date, next_update, number, expires FROM versions "
        "WHERE document = ? AND root = ? AND id = coalesce(?, id) ORDER BY issue_date DESC, id DESC",
        (_document_id(connection, key), root, only),
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


# The tables, as the list of migration steps (docs/reference/collateral-store.md). Times are seconds since 1970 in UTC.
# A released step is never changed: the next one is appended.

APPLICATION_ID = 0x43434F4C
"""`PRAGMA application_id`, "CCOL": marks a store among SQLite files."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE chains (
        id INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        pem BLOB NOT NULL
    ) STRICT;

    -- What Intel publishes, whatever the set: '' stands for a field that the kind does not have.
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        tee TEXT NOT NULL,
        fmspc TEXT NOT NULL,
        ca TEXT NOT NULL,
        UNIQUE (kind, tee, fmspc, ca)
    ) STRICT;

    -- Every version ever seen. `root` is the public key that the signature leads to.
    CREATE TABLE versions (
        id INTEGER PRIMARY KEY,
        document INTEGER NOT NULL REFERENCES documents (id),
        digest BLOB NOT NULL,
        root BLOB NOT NULL,
        body BLOB NOT NULL,
        chain INTEGER REFERENCES chains (id),
        number INTEGER NOT NULL,
        issue_date INTEGER NOT NULL,
        next_update INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        UNIQUE (document, digest)
    ) STRICT;

    -- All that the choice of a version looks at, so that it reads no bodies.
    CREATE INDEX versions_to_choose_from ON versions (document, root, issue_date, next_update, number);

    -- When and where a version was served as which set: 'standard', 'early', a number; '' for documents without sets.
    CREATE TABLE sightings (
        version INTEGER NOT NULL REFERENCES versions (id),
        served_as TEXT NOT NULL,
        source TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        PRIMARY KEY (version, served_as, source)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE pck_certificates (
        id INTEGER PRIMARY KEY,
        qe_id TEXT NOT NULL,
        pce_id TEXT NOT NULL,
        tcbm BLOB NOT NULL,
        digest BLOB NOT NULL,
        root BLOB NOT NULL,
        certificate BLOB NOT NULL,
        chain INTEGER NOT NULL REFERENCES chains (id),
        fmspc TEXT NOT NULL,
        ca TEXT NOT NULL,
        source TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        UNIQUE (qe_id, pce_id, digest)
    ) STRICT;

    -- Which certificate a platform's raw TCB leads to.
    CREATE TABLE platform_tcbs (
        qe_id TEXT NOT NULL,
        pce_id TEXT NOT NULL,
        cpu_svn TEXT NOT NULL,
        pce_svn INTEGER NOT NULL,
        certificate INTEGER NOT NULL REFERENCES pck_certificates (id),
        PRIMARY KEY (qe_id, pce_id, cpu_svn, pce_svn)
    ) STRICT, WITHOUT ROWID;

    -- Platforms met, at their latest TCB. `id` is SHA-256 of the PPID, which itself is not kept.
    CREATE TABLE platforms (
        id TEXT NOT NULL,
        tee TEXT NOT NULL,
        fmspc TEXT NOT NULL,
        ca TEXT NOT NULL,
        sgx_components BLOB NOT NULL,
        pce_svn INTEGER NOT NULL,
        cpu_svn BLOB NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        PRIMARY KEY (id, tee)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Platforms that asked a collateral service. Its former version made this table by itself.
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
    ) STRICT;

    -- When the platform itself asked last; `since` is when its state was set, by a refresh too.
    ALTER TABLE registrations ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;
    UPDATE registrations SET last_seen = since;
    -- Zeros are what Intel's provider library sends for none.
    UPDATE registrations SET encrypted_ppid = NULL WHERE encrypted_ppid = zeroblob(384);

    CREATE INDEX registrations_listed ON registrations (state, fmspc, qe_id, pce_id, cpu_svn, pce_svn);
    CREATE INDEX registrations_due ON registrations (state, since);
    CREATE INDEX registrations_seen ON registrations (qe_id, pce_id, last_seen);

    -- Rows by state, so that none must be counted.
    CREATE TABLE registration_counts (state TEXT PRIMARY KEY, registered INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO registration_counts VALUES ('waiting', 0), ('unavailable', 0), ('cached', 0);
    UPDATE registration_counts SET registered =
        (SELECT count(*) FROM registrations WHERE registrations.state = registration_counts.state);
    CREATE TRIGGER registration_added AFTER INSERT ON registrations BEGIN
        UPDATE registration_counts SET registered = registered + 1 WHERE state = new.state;
    END;
    CREATE TRIGGER registration_removed AFTER DELETE ON registrations BEGIN
        UPDATE registration_counts SET registered = registered - 1 WHERE state = old.state;
    END;
    CREATE TRIGGER registration_moved AFTER UPDATE OF state ON registrations WHEN old.state <> new.state BEGIN
        UPDATE registration_counts SET registered = registered - 1 WHERE state = old.state;
        UPDATE registration_counts SET registered = registered + 1 WHERE state = new.state;
    END;
    """,
    """
    -- What callers without a token asked for: it holds for their address alone. `processor` is SHA-256 of the PPID.
    CREATE TABLE pck_claims (
        qe_id TEXT NOT NULL,
        pce_id TEXT NOT NULL,
        cpu_svn TEXT NOT NULL,
        pce_svn INTEGER NOT NULL,
        caller TEXT NOT NULL,
        processor TEXT NOT NULL,
        encrypted_ppid BLOB,
        tcbm BLOB NOT NULL,
        root BLOB NOT NULL,
        certificate BLOB NOT NULL,
        chain INTEGER NOT NULL REFERENCES chains (id),
        fmspc TEXT NOT NULL,
        ca TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        PRIMARY KEY (qe_id, pce_id, cpu_svn, pce_svn, caller, processor)
    ) STRICT;

    CREATE INDEX pck_claims_of_caller ON pck_claims (caller, last_seen);
    CREATE INDEX pck_claims_seen ON pck_claims (last_seen);
    CREATE INDEX pck_claims_of_processor ON pck_claims (processor);
    """,
    """
    CREATE TABLE appraisal_policies (
        id TEXT NOT NULL,
        fmspc TEXT NOT NULL,
        is_default INTEGER NOT NULL,
        policy TEXT NOT NULL,
        PRIMARY KEY (id, fmspc)
    ) STRICT, WITHOUT ROWID;

    CREATE UNIQUE INDEX appraisal_policies_default ON appraisal_policies (fmspc) WHERE is_default = 1;
    """,
)
