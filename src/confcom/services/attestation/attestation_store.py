"""What the attestation service keeps: policies, signers of policies, and a record of every appraisal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from confcom.errors import ConfigError
from confcom.tokens.azure import AttestationType

Row = dict[str, Any]
_METADATA = sa.MetaData()
_POLICY = sa.Table(
    "policy",
    _METADATA,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("jws", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("signer", sa.LargeBinary),
    sa.Column("changed", sa.DateTime, nullable=False),
)
_SIGNER = sa.Table(
    "policy_signer",
    _METADATA,
    sa.Column("thumbprint", sa.String(40), primary_key=True),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
)
_APPRAISAL = sa.Table(
    "appraisal",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("caller", sa.String(64), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("policy_hash", sa.String(64), nullable=False),
    sa.Column("evidence_hash", sa.String(64), nullable=False),
    sa.Column("claims", sa.Text, nullable=False),
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


class AttestationStore:
    """The store; usable from several threads. Policies and signers have reached the disk when a method returns."""

    def __init__(self, url: str) -> None:
        try:
            self._engine, self._audit = sa.create_engine(url), sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _sqlite_settings("FULL"))
                # Records outlive the process at once, and the machine with the next checkpoint.
                event.listen(self._audit, "connect", _sqlite_settings("NORMAL"))
            _METADATA.create_all(self._engine)
        except SQLAlchemyError as error:
            raise ConfigError(
                f"the store cannot be opened: {url}: {_reason(error)}", advice="Name another one with --store."
            ) from error

    @classmethod
    def at(cls, path: Path) -> AttestationStore:
        """A store in an SQLite file, made with its folder if it is not there."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder of the store cannot be made: {path.parent}: {error.strerror}") from error
        return cls(f"sqlite:///{path}")

    def close(self) -> None:
        """End the connections."""
        self._engine.dispose()
        self._audit.dispose()

    def policy(self, kind: AttestationType) -> StoredPolicy | None:
        """The policy that was set; None where the default is in force."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_POLICY).where(_POLICY.c.kind == kind.value)).one_or_none()
        if row is None:
            return None
        return StoredPolicy(row.jws, row.text, x509.load_der_x509_certificate(row.signer) if row.signer else None)

    def set_policy(self, kind: AttestationType, policy: StoredPolicy | None, at: datetime) -> None:
        """Put a policy into force; None returns to the default."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_POLICY).where(_POLICY.c.kind == kind.value))
            if policy is not None:
                signer = policy.signer.public_bytes(Encoding.DER) if policy.signer else None
                values = {"kind": kind.value, "jws": policy.jws, "text": policy.text, "signer": signer}
                connection.execute(sa.insert(_POLICY).values(changed=_plain(at), **values))

    def signers(self) -> list[x509.Certificate]:
        """Whose signatures of policies are accepted."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_SIGNER.c.certificate).order_by(_SIGNER.c.thumbprint))
            return [x509.load_der_x509_certificate(row.certificate) for row in rows]

    def add_signer(self, certificate: x509.Certificate) -> None:
        """Accept policies that this certificate's key signed."""
        values = {"thumbprint": thumbprint(certificate), "certificate": certificate.public_bytes(Encoding.DER)}
        with self._transaction() as connection:
            connection.execute(sa.delete(_SIGNER).where(_SIGNER.c.thumbprint == values["thumbprint"]))
            connection.execute(sa.insert(_SIGNER).values(**values))

    def remove_signer(self, certificate: x509.Certificate) -> None:
        """No longer accept policies of this certificate's key."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_SIGNER).where(_SIGNER.c.thumbprint == thumbprint(certificate)))

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
        with self._transaction(self._audit) as connection:
            connection.execute(sa.insert(_APPRAISAL), rows)

    def records(self, *, before: int | None = None, kind: AttestationType | None = None, limit: int = 100) -> list[Row]:
        """Records with an id below `before`, the newest first."""
        chosen = sa.select(_APPRAISAL).order_by(_APPRAISAL.c.id.desc()).limit(limit)
        if before is not None:
            chosen = chosen.where(_APPRAISAL.c.id < before)
        if kind is not None:
            chosen = chosen.where(_APPRAISAL.c.kind == kind.value)
        with self._transaction() as connection:
            return [row._asdict() for row in connection.execute(chosen)]

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        try:
            with (engine or self._engine).begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ConfigError(f"the store cannot be used: {_reason(error)}") from error


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-1 of the DER in hex, as Azure names signers."""
    return certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - a name, no protection


def _sqlite_settings(synchronous: str) -> Callable[[Any, object], None]:
    def apply(connection: Any, _: object) -> None:  # noqa: ANN401 - of the driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    return apply


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _plain(time: datetime) -> datetime:
    """UTC without a zone, as both databases keep it."""
    return time.astimezone(UTC).replace(tzinfo=None)
