"""What the attestation service keeps: changes of policies and signers, published keys, a record of every appraisal.

What is in force is the newest change; nothing is overwritten. Records are forgotten after the retention period.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from confcom.errors import ConfigError
from confcom.services.runtime.process import WorkerThreads
from confcom.tokens.azure import AttestationType

BUSY_TIMEOUT = 15.0
"""Seconds that a writer waits for another process's write."""
HELD_FOR = timedelta(minutes=1)
"""Between two notes that a replica still has a key."""
FORGOTTEN_AT_ONCE = 5_000
"""Records that one transaction removes."""

Row = dict[str, Any]
METADATA = sa.MetaData()
"""The tables after the newest revision; `migrations` makes them."""
_POLICY_CHANGE = sa.Table(
    "policy_change",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
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
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("administrator", sa.String(256), nullable=False),
    sa.Column("thumbprint", sa.String(40), nullable=False, index=True),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
)
_APPRAISAL = sa.Table(
    "appraisal",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("caller", sa.String(64), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("policy_hash", sa.String(64), nullable=False),
    sa.Column("evidence_hash", sa.String(64), nullable=False, index=True),
    sa.Column("claims", sa.Text, nullable=False),
)
_INSERT_APPRAISAL = sa.insert(_APPRAISAL)
_SIGNING_KEY = sa.Table(
    "signing_key",
    METADATA,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("jwk", sa.Text, nullable=False),
    sa.Column("published", sa.DateTime, nullable=False),
    sa.Column("held", sa.DateTime, nullable=False),
    sa.Column("revoked", sa.DateTime),
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


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy in force: as it was sent, its text, and who signed it."""

    jws: str
    text: str
    signer: x509.Certificate | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
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
    """Which records of appraisals are wanted; None wants all. `since` counts, `until` does not."""

    kind: AttestationType | None = None
    verdict: str | None = None
    caller: str | None = None
    policy_hash: str | None = None
    evidence_hash: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        """Of the table of appraisals."""
        for name in ("kind", "verdict", "caller", "policy_hash", "evidence_hash"):
            if (value := getattr(self, name)) is not None:
                yield _APPRAISAL.c[name] == str(value)
        if self.since is not None:
            yield _APPRAISAL.c.at >= _plain(self.since)
        if self.until is not None:
            yield _APPRAISAL.c.at < _plain(self.until)


EVERY_RECORD = RecordFilter()


class AttestationStore:
    """The store; usable from several threads and processes. Changes have reached the disk when a method returns."""

    def __init__(self, url: str, *, migrate: bool = True) -> None:
        """Open it, and bring an older schema to the newest revision; without `migrate` an older one is refused."""
        self.failures = 0
        """Transactions that the database refused."""
        try:
            self._engine, self._audit = _engine(url, "FULL"), _engine(url, "NORMAL")
            with self._change() as connection:
                _bring_up_to_date(connection, url, migrate=migrate)
        except SQLAlchemyError as error:
            raise ConfigError(
                f"the store cannot be opened: {url}: {_reason(error)}", advice="Name another one with --store."
            ) from error

    @classmethod
    def at(cls, path: Path, *, migrate: bool = True) -> AttestationStore:
        """A store in an SQLite file, made with its folder if it is not there; without `migrate` it has to be there."""
        try:
            if migrate:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not path.exists():
                raise ConfigError(f"there is no store at {path}", advice="Name the store of the service (--store).")
        except OSError as error:
            raise ConfigError(f"the folder of the store cannot be made: {path.parent}: {error.strerror}") from error
        return cls(f"sqlite:///{path}", migrate=migrate)

    def close(self) -> None:
        """End the connections."""
        self._engine.dispose()
        self._audit.dispose()

    def policy(self, kind: AttestationType) -> StoredPolicy | None:
        """The policy that was set; None where the default is in force."""
        newest = sa.select(_POLICY_CHANGE).where(_POLICY_CHANGE.c.kind == kind.value)
        with self._read() as connection:
            row = connection.execute(newest.order_by(_POLICY_CHANGE.c.id.desc()).limit(1)).one_or_none()
        if row is None or row.jws is None:
            return None
        return StoredPolicy(row.jws, row.text, x509.load_der_x509_certificate(row.signer) if row.signer else None)

    def set_policy(self, kind: AttestationType, policy: StoredPolicy | None, at: datetime, *, by: str = "") -> None:
        """Put a policy into force for the administrator `by`; None returns to the default."""
        values: Row = {"at": _plain(at), "administrator": by[:256], "kind": kind.value}
        if policy is not None:
            signer = policy.signer.public_bytes(Encoding.DER) if policy.signer else None
            values |= {"jws": policy.jws, "text": policy.text, "signer": signer}
        with self._change() as connection:
            connection.execute(sa.insert(_POLICY_CHANGE).values(**values))

    def signers(self) -> list[x509.Certificate]:
        """Certificates of the keys that may sign policies."""
        with self._read() as connection:
            return _accepted(connection)

    def first_signer(self, certificate: x509.Certificate, at: datetime) -> None:
        """Accept a signer of the configuration, unless administrators have added or removed it before."""
        with self._change() as connection:
            seen = sa.select(_SIGNER_CHANGE.c.id).where(_SIGNER_CHANGE.c.thumbprint == thumbprint(certificate)).limit(1)
            if connection.execute(seen).first() is None:
                connection.execute(sa.insert(_SIGNER_CHANGE).values(_signer_change(certificate, at, "", accepted=True)))

    def change_signer(self, certificate: x509.Certificate, at: datetime, *, accepted: bool, by: str = "") -> bool:
        """Accept policies that this certificate's key signed, or no longer; False, and no change, for the last one."""
        with self._change() as connection:
            if not accepted and _accepted(connection) == [certificate]:
                return False
            connection.execute(sa.insert(_SIGNER_CHANGE).values(_signer_change(certificate, at, by, accepted=accepted)))
        return True

    def record(self, entries: Sequence[AuditRecord]) -> None:
        """Keep the records of appraisals, in one transaction."""
        rows = [
            {
                "at": _plain(entry.at),
                "kind": entry.kind.value,
                "caller": entry.caller[:64],
                "verdict": entry.verdict,
                "reason": entry.reason[:4096],
                "policy_hash": entry.policy_hash,
                "evidence_hash": entry.evidence_hash,
                "claims": entry.claims,
            }
            for entry in entries
        ]
        with self._change(self._audit) as connection:
            connection.execute(_INSERT_APPRAISAL, rows)

    def records(self, wanted: RecordFilter = EVERY_RECORD, *, before: int | None = None, limit: int = 100) -> list[Row]:
        """Records with an id below `before`, the newest first; `at` is UTC without a zone."""
        chosen = sa.select(_APPRAISAL).where(*wanted.conditions()).order_by(_APPRAISAL.c.id.desc()).limit(limit)
        if before is not None:
            chosen = chosen.where(_APPRAISAL.c.id < before)
        with self._read() as connection:
            return [row._asdict() for row in connection.execute(chosen)]

    def export(self, wanted: RecordFilter = EVERY_RECORD, *, page: int = 1000) -> Iterator[Row]:
        """Every record, the newest first, as `as_line` has it; read a page at a time."""
        before = None
        while rows := self.records(wanted, before=before, limit=page):
            yield from map(as_line, rows)
            before = rows[-1]["id"]

    def forget_records(self, before: datetime) -> int:
        """Remove the oldest records from before that time, up to `FORGOTTEN_AT_ONCE`; how many there were."""
        oldest = sa.select(_APPRAISAL.c.id).where(_APPRAISAL.c.at < _plain(before)).order_by(_APPRAISAL.c.id)
        with self._change(self._audit) as connection:
            chosen = _APPRAISAL.c.id.in_(oldest.limit(FORGOTTEN_AT_ONCE).scalar_subquery())
            return int(connection.execute(sa.delete(_APPRAISAL).where(chosen)).rowcount)

    def use_nonce(self, nonce: bytes, now: datetime, until: datetime) -> bool:
        """Whether the nonce, which is good until `until`, is used for the first time; it then is used up."""
        used = {"digest": hashlib.sha256(nonce).hexdigest(), "until": _plain(until)}
        with self._change() as connection:
            connection.execute(sa.delete(_USED_NONCE).where(_USED_NONCE.c.until < _plain(now)))
            known = connection.execute(sa.select(_USED_NONCE).where(_USED_NONCE.c.digest == used["digest"])).first()
            if known is None:
                connection.execute(sa.insert(_USED_NONCE).values(**used))
        return known is None

    def publish_keys(
        self, held: Mapping[str, str], now: datetime, *, since: datetime, renew: bool = False
    ) -> dict[str, PublishedKey]:
        """Publish the JWK of each key that this replica has, and give all that are published, by key id.

        Published are the keys that a replica had at `since` or later, except those that were revoked. `renew` replaces
        the JWK of a key that is published: its certificate may attest it now.
        """
        found = self._published(since)
        if renew or not all(key in found and now - found[key].held < HELD_FOR for key in held):
            with self._change() as connection:
                known = set(connection.execute(sa.select(_SIGNING_KEY.c.key_id)).scalars())
                for key_id, jwk in held.items():
                    values: Row = {"held": _plain(now)} | ({"jwk": jwk} if renew or key_id not in known else {})
                    if key_id in known:
                        change = sa.update(_SIGNING_KEY).where(_SIGNING_KEY.c.key_id == key_id)
                        connection.execute(change.values(**values))
                    else:
                        added = sa.insert(_SIGNING_KEY).values(key_id=key_id, published=_plain(now), **values)
                        connection.execute(added)
            found = self._published(since)
        return {key_id: key for key_id, key in found.items() if not key.revoked}

    def revoke_key(self, key_id: str, at: datetime) -> bool:
        """Take a key out of every key set for good; False if it was never published."""
        with self._change() as connection:
            change = sa.update(_SIGNING_KEY).where(_SIGNING_KEY.c.key_id == key_id)
            return connection.execute(change.values(revoked=_plain(at))).rowcount == 1

    def _published(self, since: datetime) -> dict[str, PublishedKey]:
        chosen = sa.select(_SIGNING_KEY).where(_SIGNING_KEY.c.held >= _plain(since)).order_by(_SIGNING_KEY.c.published)
        with self._read() as connection:
            return {
                row.key_id: PublishedKey(
                    row.jwk, row.published.replace(tzinfo=UTC), row.held.replace(tzinfo=UTC), row.revoked is not None
                )
                for row in connection.execute(chosen)
            }

    def nonce_secret(self) -> bytes:
        """32 random bytes that every replica of the store shares; made at the first call."""
        kept = sa.select(_SECRET.c.value).where(_SECRET.c.name == "nonce")
        with self._change() as connection:
            found = connection.execute(kept).scalar_one_or_none()
            if found is None:
                found = secrets.token_bytes(32)
                connection.execute(sa.insert(_SECRET).values(name="nonce", value=found))
        return bytes(found)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _change(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        """A transaction that excludes other writers."""
        with self._translated(), (engine or self._engine).begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            self.failures += 1
            raise ConfigError(f"the store cannot be used: {_reason(error)}") from error


HOLD = 0.005
"""Seconds for which a record may wait for others."""
QUIET_TURNS = 3


class AuditWriter:
    """Records appraisals before their callers are answered: one transaction at a time, with all that came meanwhile."""

    def __init__(self, write: Callable[[Sequence[AuditRecord]], None]) -> None:
        self._write = write
        self._thread = WorkerThreads("audit", threads=1, max_waiting=1)
        self._pending: list[tuple[AuditRecord, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, entry: AuditRecord) -> None:
        """Return once the record is committed; an error of its transaction is raised for every record in it."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._run())
        await kept

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    async def _gather(self) -> None:
        """Wait until no record joins in a few turns of the event loop: a transaction costs as much as several."""
        loop = asyncio.get_running_loop()
        latest, known, turns = loop.time() + HOLD, 0, 0
        while turns < QUIET_TURNS and loop.time() < latest:
            turns = turns + 1 if len(self._pending) == known else 0
            known = len(self._pending)
            await asyncio.sleep(0)

    async def _run(self) -> None:
        while self._pending:
            await self._gather()
            batch, self._pending = self._pending, []
            entries = [entry for entry, _ in batch]
            outcome: Exception | None = None
            try:
                await self._thread.run(lambda entries=entries: self._write(entries))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - raised again by every waiting call
                outcome = error
            for _, kept in batch:
                if kept.done():
                    continue
                if outcome is None:
                    kept.set_result(None)
                else:
                    kept.set_exception(outcome)


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


def _signer_change(certificate: x509.Certificate, at: datetime, by: str, *, accepted: bool) -> Row:
    der = certificate.public_bytes(Encoding.DER)
    named = {"administrator": by[:256], "thumbprint": thumbprint(certificate), "certificate": der}
    return {"at": _plain(at), "accepted": accepted, **named}


def _engine(url: str, synchronous: str) -> sa.Engine:
    """FULL keeps what was committed through a power failure; NORMAL since the last checkpoint."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        def settings(connection: Any, _: object) -> None:  # noqa: ANN401 - of the driver
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT * 1000)}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.close()

        event.listen(engine, "connect", settings)
    return engine


def _bring_up_to_date(connection: sa.Connection, url: str, *, migrate: bool) -> None:
    """Run the revisions that the store lacks, in the transaction of the connection."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "confcom.services.attestation:migrations")
    script = ScriptDirectory.from_config(config)
    found, newest = MigrationContext.configure(connection).get_current_revision(), script.get_current_head()
    if found == newest:
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"{url} has the schema revision {found!r} of a newer confcom; this one knows revisions up to {newest!r}",
            advice="Run the newer version, or name another store with --store.",
        )
    tables = set(sa.inspect(connection).get_table_names())
    if found is None and tables and "appraisal" not in tables:
        raise ConfigError(
            f"{url} is the database of another program: it has the table {min(tables)!r}",
            advice="Name another store with --store.",
        )
    if not migrate:
        raise ConfigError(
            f"{url} has an older schema (revision {found}), this confcom reads {newest!r}",
            advice="Start the service once: it migrates its store.",
        )
    command.upgrade(config, "head")


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _plain(time: datetime) -> datetime:
    """UTC without a zone, as both databases keep it."""
    return time.astimezone(UTC).replace(tzinfo=None)
