"""What the attestation service keeps: changes of policies and signers, published keys, a record of every appraisal.

What is in force is the newest change; nothing is overwritten. Records are forgotten after the retention period.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.dialects import sqlite

from confcom.database.changes import Leases, announce, lease_table
from confcom.database.engine import Database, DatabaseAddress
from confcom.database.revisions import Chain
from confcom.errors import ConfigError, DatabaseError, DatabaseUnavailable
from confcom.services.runtime.process import WorkerThreads
from confcom.tokens.azure import AttestationType, SentPolicy

HELD_FOR = timedelta(minutes=1)
"""Between two notes that a replica still has a key."""
REFUSED_FOR = 10.0
"""Seconds for which a refusal of the store makes a replica not ready."""
FORGOTTEN_AT_ONCE = 5_000
"""Records that one transaction removes."""
POLICIES, KEYS = "attestation.policies", "attestation.keys"
"""Topics of announcements to other replicas."""

Row = dict[str, Any]
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
METADATA = sa.MetaData()
"""The tables after the newest revision; `migrations` makes them."""
_POLICY_CHANGE = sa.Table(
    "policy_change",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("administrator", sa.String(256), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, index=True),
    sa.Column("jws", sa.Text),  # NULL: the default returned
    sa.Column("text", sa.Text),
    sa.Column("signer", sa.LargeBinary),
)
_SIGNER_CHANGE = sa.Table(
    "signer_change",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("administrator", sa.String(256), nullable=False),
    sa.Column("thumbprint", sa.String(40), nullable=False, index=True),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
)
_APPRAISAL = sa.Table(
    "appraisal",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("caller", sa.String(64), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("policy_hash", sa.String(64), nullable=False),
    sa.Column("evidence_hash", sa.String(64), nullable=False),
    sa.Column("claims", sa.Text, nullable=False),
    sa.Index("ix_appraisal_at_evidence_hash", "at", "evidence_hash"),
)
_INSERT_APPRAISAL = sa.insert(_APPRAISAL)
_RECORDED = ("at", "kind", "caller", "verdict", "reason", "policy_hash", "evidence_hash", "claims")
_INSERT_AT_ONCE = str(_INSERT_APPRAISAL.compile(dialect=sqlite.dialect(), column_keys=_RECORDED))
_INSERT_AS_JSON = """
INSERT INTO appraisal (at, kind, caller, verdict, reason, policy_hash, evidence_hash, claims)
SELECT (r->>0)::timestamp, r->>1, r->>2, r->>3, r->>4, r->>5, r->>6, r->>7 FROM json_array_elements(%s::json) AS r"""
"""For PostgreSQL: its driver takes much longer for the values of each row than for one long text."""
_KEY_CHANGE = sa.Table(
    "key_change",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False, index=True),
    sa.Column("jwk", sa.Text),  # NULL: revoked
)
_KEY_HELD = sa.Table(
    "key_held",
    METADATA,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("held", sa.DateTime, nullable=False, index=True),
)
_USED_NONCE = sa.Table(
    "used_nonce",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("until", sa.DateTime, nullable=False, index=True),
)
_SECRET = sa.Table(
    "secret",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
_LEASE = lease_table(METADATA)


class AuditRecord(msgspec.Struct, frozen=True):
    """One appraisal: who asked, what was judged by which policy, and the outcome. Hashes are SHA-256.

    `claims` is the JSON of what the policy saw, empty where the evidence did not get that far.
    """

    at: datetime
    kind: AttestationType
    caller: str
    verdict: str
    reason: str
    policy_hash: str
    evidence_hash: str
    claims: str


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A signing key in the key set: its JWK, since when, and when a replica last had it."""

    jwk: str
    published: datetime
    held: datetime
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Conditions on records of appraisals; None is no condition. `since` is inclusive, `until` exclusive."""

    kind: AttestationType | None = None
    verdict: str | None = None
    caller: str | None = None
    policy_hash: str | None = None
    evidence_hash: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        """Of the table of appraisals."""
        for name in ("kind", "verdict", "caller", "policy_hash"):
            if (value := getattr(self, name)) is not None:
                yield _APPRAISAL.c[name] == str(value)
        if self.evidence_hash is not None:  # read in the index, a twentieth of the table
            found = sa.select(_APPRAISAL.c.id).where(_APPRAISAL.c.evidence_hash == self.evidence_hash)
            yield _APPRAISAL.c.id.in_(found)
        if self.since is not None:
            yield _APPRAISAL.c.at >= _plain(self.since)
        if self.until is not None:
            yield _APPRAISAL.c.at < _plain(self.until)


EVERY_RECORD = RecordFilter()


CHAIN = Chain(
    service="attestation",
    versions="confcom.services.attestation:migrations/versions",
    first_table="appraisal",
    metadata=METADATA,
    rights={
        "policy_change": "SELECT, INSERT",
        "signer_change": "SELECT, INSERT",
        "appraisal": "SELECT, INSERT",  # old ones are removed by a function
        "key_change": "SELECT, INSERT",
        "key_held": "SELECT, INSERT, UPDATE",
        "used_nonce": "SELECT, INSERT, UPDATE, DELETE",
        "secret": "SELECT, INSERT",
        "lease": "SELECT, INSERT, UPDATE, DELETE",
    },
    functions=("forget_appraisals",),
)


class AttestationStore:
    """The store; usable from several threads and processes. Changes have reached the disk when a method returns."""

    def __init__(self, database: Database) -> None:
        """Of a database with the newest schema."""
        self.database = database
        self.leases = Leases(database, _LEASE)

    @classmethod
    def open(cls, where: str | Path, *, made: bool = True) -> AttestationStore:
        """The store at a path or in PostgreSQL.

        An SQLite file is made with its folder if it is not there, and brought to the newest schema; without `made` it
        has to be there and have it, as a database in PostgreSQL always has.

        Raises:
            ConfigError: there is no such store; it has another schema; `DatabaseError`: it cannot be used.
        """
        database = Database(DatabaseAddress.parse(where))
        try:
            path = database.address.path
            if made and path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                CHAIN.upgrade(database)
            elif path is not None and not path.exists():
                raise ConfigError(f"there is no store at {path}", advice="Name the store of the service (--store).")
            else:
                CHAIN.check(database)
        except OSError as error:
            raise ConfigError(f"the store cannot be used: {error.filename}: {error.strerror}") from error
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """End the connections."""
        self.database.close()

    def policy(self, kind: AttestationType) -> SentPolicy | None:
        """The policy that was set; None where the default is in force."""
        newest = sa.select(_POLICY_CHANGE).where(_POLICY_CHANGE.c.kind == kind.value)
        with self.database.read() as connection:
            row = connection.execute(newest.order_by(_POLICY_CHANGE.c.id.desc()).limit(1)).one_or_none()
        if row is None or row.jws is None:
            return None
        return SentPolicy(row.jws, row.text, x509.load_der_x509_certificate(row.signer) if row.signer else None)

    def set_policy(self, kind: AttestationType, policy: SentPolicy | None, at: datetime, *, by: str = "") -> None:
        """Put a policy into force for the administrator `by`; None returns to the default."""
        values: Row = {"at": _plain(at), "administrator": by[:256], "kind": kind.value}
        if policy is not None:
            signer = policy.signer.public_bytes(Encoding.DER) if policy.signer else None
            values |= {"jws": policy.jws, "text": policy.text, "signer": signer}
        with self.database.write() as connection:
            connection.execute(sa.insert(_POLICY_CHANGE).values(**values))
            announce(connection, POLICIES)

    def signers(self) -> list[x509.Certificate]:
        """Certificates of the keys that may sign policies."""
        with self.database.read() as connection:
            return _accepted(connection)

    def first_signer(self, certificate: x509.Certificate, at: datetime) -> None:
        """Accept a signer of the configuration, unless administrators have added or removed it before."""
        with self.database.write("signers") as connection:
            seen = sa.select(_SIGNER_CHANGE.c.id).where(_SIGNER_CHANGE.c.thumbprint == thumbprint(certificate)).limit(1)
            if connection.execute(seen).first() is None:
                connection.execute(sa.insert(_SIGNER_CHANGE).values(_signer_change(certificate, at, "", accepted=True)))

    def change_signer(self, certificate: x509.Certificate, at: datetime, *, accepted: bool, by: str = "") -> bool:
        """Accept policies that this certificate's key signed, or no longer; False, and no change, for the last one."""
        with self.database.write("signers") as connection:
            if not accepted and _accepted(connection) == [certificate]:
                return False
            connection.execute(sa.insert(_SIGNER_CHANGE).values(_signer_change(certificate, at, by, accepted=accepted)))
        return True

    def record(self, entries: Sequence[AuditRecord]) -> None:
        """Keep the records of appraisals, in one transaction."""
        rows = [(_plain(entry.at), *_columns(entry)) for entry in entries]
        with self.database.write(flushed=False, single=True) as connection:
            if self.database.shared:
                connection.exec_driver_sql(_INSERT_AS_JSON, (msgspec.json.encode(rows).decode(),))
            else:
                connection.execute(_INSERT_APPRAISAL, [dict(zip(_RECORDED, row, strict=True)) for row in rows])

    def record_at_once(self, entries: Sequence[AuditRecord]) -> bool:
        """The same from an event loop; False, and nothing is kept, where it would wait (`insert_at_once`)."""
        # The time as SQLAlchemy writes it.
        rows = [(_plain(entry.at).isoformat(" ", "microseconds"), *_columns(entry)) for entry in entries]
        return self.database.insert_at_once(_INSERT_AT_ONCE, rows)

    def records(self, wanted: RecordFilter = EVERY_RECORD, *, before: int | None = None, limit: int = 100) -> list[Row]:
        """Records with an id below `before`, the newest first; `at` is UTC without a zone."""
        chosen = sa.select(_APPRAISAL).where(*wanted.conditions()).order_by(_APPRAISAL.c.id.desc()).limit(limit)
        if before is not None:
            chosen = chosen.where(_APPRAISAL.c.id < before)
        with self.database.read() as connection:
            return [row._asdict() for row in connection.execute(chosen)]

    def export(self, wanted: RecordFilter = EVERY_RECORD, *, page: int = 1000) -> Iterator[Row]:
        """Every record, the newest first, as `as_line` has it; read a page at a time."""
        before = None
        while rows := self.records(wanted, before=before, limit=page):
            yield from map(as_line, rows)
            before = rows[-1]["id"]

    def forget_records(self, before: datetime, most: int = 1 << 62) -> int:
        """Remove oldest records: those from before that time, and those beyond the newest `most`.

        At most `FORGOTTEN_AT_ONCE` in one call; it returns how many there were.
        """
        newest = sa.select(sa.func.max(_APPRAISAL.c.id)).scalar_subquery()
        with self.database.write(flushed=False) as connection:
            if self.database.shared:
                forget = sa.func.forget_appraisals(_plain(before), newest - most, FORGOTTEN_AT_ONCE)
                return int(connection.execute(sa.select(forget)).scalar_one())
            old = (_APPRAISAL.c.at < _plain(before)) | (_APPRAISAL.c.id <= newest - most)
            oldest = sa.select(_APPRAISAL.c.id).where(old).order_by(_APPRAISAL.c.id).limit(FORGOTTEN_AT_ONCE)
            chosen = _APPRAISAL.c.id.in_(oldest.scalar_subquery())
            return int(connection.execute(sa.delete(_APPRAISAL).where(chosen)).rowcount)

    def use_nonce(self, nonce: bytes, now: datetime, until: datetime) -> bool:
        """Whether the nonce, which is good until `until`, is used for the first time; it then is used up."""
        used = {"digest": hashlib.sha256(nonce).hexdigest(), "until": _plain(until)}
        ended = sa.select(_USED_NONCE.c.digest).where(_USED_NONCE.c.until < _plain(now)).limit(FORGOTTEN_AT_ONCE)
        with self.database.write() as connection:
            # Replicas that forget at the same time leave each other's rows alone.
            ended = ended.with_for_update(skip_locked=True)
            connection.execute(sa.delete(_USED_NONCE).where(_USED_NONCE.c.digest.in_(ended.scalar_subquery())))
            added = self.database.insert(connection.dialect.name, _USED_NONCE).values(**used).on_conflict_do_nothing()
            return connection.execute(added.returning(_USED_NONCE.c.digest)).first() is not None

    def publish_keys(
        self, held: Mapping[str, str], now: datetime, *, since: datetime, renew: bool = False
    ) -> dict[str, PublishedKey]:
        """Publish the JWK of each key that this replica has, and give all that are published, by key id.

        Published are the keys that a replica had at `since` or later, except those that were revoked. `renew` replaces
        the JWK of a key that is published: its certificate may attest it now.
        """
        found = self._published(since)
        if renew or not all(key in found and abs(now - found[key].held) < HELD_FOR for key in held):
            with self.database.write("signing keys") as connection:
                known = _keys(connection, _KEY_CHANGE.c.key_id.in_(held))
                for key_id, jwk in held.items():
                    if key_id not in known or (renew and not known[key_id].revoked and known[key_id].jwk != jwk):
                        added = sa.insert(_KEY_CHANGE).values(key_id=key_id, at=_plain(now), jwk=jwk)
                        connection.execute(added)
                    seen = self.database.insert(connection.dialect.name, _KEY_HELD).values(
                        key_id=key_id, held=_plain(now)
                    )
                    connection.execute(
                        seen.on_conflict_do_update(index_elements=["key_id"], set_={"held": _plain(now)})
                    )
                announce(connection, KEYS)
            found = self._published(since)
        return {key_id: key for key_id, key in found.items() if not key.revoked}

    def revoke_key(self, key_id: str, at: datetime) -> bool:
        """Take a key out of every key set for good; False if it was never published."""
        with self.database.write("signing keys") as connection:
            known = _keys(connection, _KEY_CHANGE.c.key_id == key_id)
            if key_id in known and not known[key_id].revoked:
                connection.execute(sa.insert(_KEY_CHANGE).values(key_id=key_id, at=_plain(at)))
                announce(connection, KEYS)
        return key_id in known

    def _published(self, since: datetime) -> dict[str, PublishedKey]:
        with self.database.read() as connection:
            return _keys(connection, _KEY_HELD.c.held >= _plain(since))

    def nonce_secret(self) -> bytes:
        """32 random bytes that every replica of the store shares; made at the first call."""
        new = {"name": "nonce", "value": secrets.token_bytes(32)}
        with self.database.write() as connection:
            connection.execute(
                self.database.insert(connection.dialect.name, _SECRET).values(**new).on_conflict_do_nothing()
            )
            return bytes(connection.execute(sa.select(_SECRET.c.value)).scalar_one())


T = TypeVar("T")
_Awaited: TypeAlias = tuple[AuditRecord, asyncio.Future[Any], Any]
"""A record, the future that waits for it, and the value which that gets."""


class AuditWriter:
    """Records appraisals before their callers are answered: one transaction at a time, with all that came meanwhile."""

    def __init__(self, store: AttestationStore) -> None:
        self._store = store
        self._thread = WorkerThreads("audit", threads=1, max_waiting=1)
        self._pending: list[_Awaited] = []
        self._busy = False
        """Whether a transaction is under way, or comes in this turn of the event loop."""
        self._writing: asyncio.Task[None] | None = None
        self._refusal, self._refused_at = "", 0.0

    @property
    def problem(self) -> str:
        """Why the last transaction was refused, such as by a full disk, for `REFUSED_FOR`: the next one shows then."""
        return self._refusal if time.monotonic() - self._refused_at < REFUSED_FOR else ""

    def record(self, entry: AuditRecord) -> asyncio.Future[None]:
        """Done once the record is committed; an error of its transaction is raised for every record in it."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.record_for(entry, kept, None)
        return kept

    def record_for(self, entry: AuditRecord, kept: asyncio.Future[T], value: T) -> None:
        """The same for a future that there is; it gets the value."""
        self._pending.append((entry, kept, value))
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._write)

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _write(self) -> None:
        """Write what came in this turn of the event loop: here if nothing waits then, else in the thread."""
        if self._store.record_at_once([entry for entry, _, _ in self._pending]):
            self._busy, self._refusal = False, ""
            _settle(self._take(), None)
        else:
            self._writing = asyncio.create_task(self._write_in_thread())

    async def _write_in_thread(self) -> None:
        while batch := self._take():
            entries = [entry for entry, _, _ in batch]
            outcome: Exception | None = None
            try:
                await self._thread.run(lambda entries=entries: self._store.record(entries))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - raised again by every waiting call
                outcome = error
            passes = isinstance(outcome, DatabaseUnavailable)  # maybe for every replica; callers are told to ask again
            self._refusal = outcome.message if isinstance(outcome, DatabaseError) and not passes else ""
            self._refused_at = time.monotonic()
            _settle(batch, outcome)
        self._busy = False

    def _take(self) -> list[_Awaited]:
        batch, self._pending = self._pending, []
        return batch


def _settle(batch: list[_Awaited], outcome: Exception | None) -> None:
    for _, kept, value in batch:
        if kept.done():
            continue
        if outcome is None:
            kept.set_result(value)
        else:
            kept.set_exception(outcome)


def _columns(entry: AuditRecord) -> tuple[str, ...]:
    """What a record holds beside its time."""
    return (
        entry.kind.value,
        entry.caller[:64],
        entry.verdict,
        entry.reason[:4096].replace("\0", "\ufffd"),  # which PostgreSQL does not take
        entry.policy_hash,
        entry.evidence_hash,
        entry.claims,
    )


def as_line(row: Row) -> Row:
    """A record for JSON: the time in RFC 3339."""
    return row | {"at": f"{row['at']:%Y-%m-%dT%H:%M:%SZ}"}


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-1 of the DER in hex, as Azure names signers."""
    return certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - a name, no protection


def _accepted(connection: sa.Connection) -> list[x509.Certificate]:
    newest = sa.select(sa.func.max(_SIGNER_CHANGE.c.id)).group_by(_SIGNER_CHANGE.c.thumbprint)
    chosen = sa.select(_SIGNER_CHANGE.c.certificate).where(_SIGNER_CHANGE.c.id.in_(newest), _SIGNER_CHANGE.c.accepted)
    rows = connection.execute(chosen.order_by(_SIGNER_CHANGE.c.thumbprint))
    return [x509.load_der_x509_certificate(row.certificate) for row in rows]


def _keys(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> dict[str, PublishedKey]:
    """By key id, in the order in which they were published; the newest JWK counts, and a revocation for good."""
    both = sa.outerjoin(_KEY_CHANGE, _KEY_HELD, _KEY_CHANGE.c.key_id == _KEY_HELD.c.key_id)
    changes = sa.select(_KEY_CHANGE, _KEY_HELD.c.held).select_from(both).where(chosen).order_by(_KEY_CHANGE.c.id)
    found: dict[str, PublishedKey] = {}
    for row in connection.execute(changes):
        at, held = row.at.replace(tzinfo=UTC), (row.held or row.at).replace(tzinfo=UTC)
        key = found.get(row.key_id) or PublishedKey(row.jwk, at, held, revoked=False)
        revoked = key.revoked or row.jwk is None
        found[row.key_id] = replace(key, jwk=key.jwk if revoked else row.jwk, revoked=revoked)
    return found


def _signer_change(certificate: x509.Certificate, at: datetime, by: str, *, accepted: bool) -> Row:
    der = certificate.public_bytes(Encoding.DER)
    named = {"administrator": by[:256], "thumbprint": thumbprint(certificate), "certificate": der}
    return {"at": _plain(at), "accepted": accepted, **named}


def _plain(time: datetime) -> datetime:
    """UTC without a zone, as both databases keep it."""
    return time.astimezone(UTC).replace(tzinfo=None)
