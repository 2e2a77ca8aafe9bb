"""The tables of the collateral store after the newest revision (docs/reference/collateral-store.md), on both engines.

Times are seconds since 1970 in UTC; bytes are blobs. `migrations` makes the tables.
"""

from __future__ import annotations

import sqlalchemy as sa

from confcom.database.changes import lease_table

APPLICATION_ID = 0x43434F4C
"""`PRAGMA application_id` of SQLite files, "CCOL": marks a store among them."""

NEWEST = "0002"
"""The revision that this confcom uses: the head of the chain, which opening a store need not import."""

METADATA = sa.MetaData()
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""63 bits on both engines."""


def _table(name: str, *columns: sa.schema.SchemaItem, rows: bool = True) -> sa.Table:
    """A table; without `rows`, SQLite keeps it in the order of its primary key."""
    return sa.Table(name, METADATA, *columns, sqlite_strict=True, sqlite_with_rowid=rows)


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def _whole(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, WHOLE, primary_key=key, autoincrement=False, nullable=False)


def _blob(name: str, *, null: bool = False) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=null)


def _serial(name: str) -> sa.Column[int]:
    return sa.Column(name, WHOLE, primary_key=True)


def _reference(name: str, to: str, *, key: bool = False, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, WHOLE, sa.ForeignKey(f"{to}.id"), primary_key=key, autoincrement=False, nullable=null)


CHAINS = _table("chains", _serial("id"), sa.Column("digest", sa.LargeBinary, nullable=False, unique=True), _blob("pem"))

DOCUMENTS = _table(
    "documents",
    _serial("id"),
    *map(_text, ("kind", "tee", "fmspc", "ca")),
    sa.UniqueConstraint("kind", "tee", "fmspc", "ca"),
)
"""What Intel publishes, whatever the set: '' stands for a field that the kind does not have."""

VERSIONS = _table(
    "versions",
    _serial("id"),
    _reference("document", "documents"),
    *map(_blob, ("digest", "root", "body")),
    _reference("chain", "chains", null=True),
    *map(_whole, ("number", "issue_date", "next_update", "expires")),
    sa.UniqueConstraint("document", "digest"),
    # All that the choice of a version looks at, so that it reads no bodies.
    sa.Index("versions_to_choose_from", "document", "root", "issue_date", "next_update", "number"),
)
"""Every version ever seen. `root` is the public key that the signature leads to."""

SIGHTINGS = _table(
    "sightings",
    _reference("version", "versions", key=True),
    _text("served_as", key=True),
    _whole("seen", key=True),
    _text("source", key=True),
    rows=False,
)
"""Each time a version was served as a set: 'standard', 'early', a number; '' for documents without sets."""

PCK_CERTIFICATES = _table(
    "pck_certificates",
    _serial("id"),
    *map(_text, ("qe_id", "pce_id")),
    *map(_blob, ("tcbm", "digest", "root", "certificate")),
    _reference("chain", "chains"),
    *map(_text, ("fmspc", "ca", "source")),
    *map(_whole, ("first_seen", "last_seen")),
    sa.UniqueConstraint("qe_id", "pce_id", "digest"),
)

PLATFORM_TCBS = _table(
    "platform_tcbs",
    _serial("id"),
    *map(_text, ("qe_id", "pce_id", "cpu_svn")),
    _whole("pce_svn"),
    _reference("certificate", "pck_certificates"),
    _whole("since"),
    sa.Index("platform_tcbs_latest", "qe_id", "pce_id", "cpu_svn", "pce_svn", "since", "id"),
)
"""Which certificate a platform's raw TCB led to; the latest row (`since`, `id`) is current."""

PLATFORMS = _table(
    "platforms",
    _serial("number"),
    *map(_text, ("id", "tee", "fmspc", "ca")),
    _blob("sgx_components"),
    _whole("pce_svn"),
    _blob("cpu_svn"),
    sa.Index("platforms_of_id", "id", "tee"),
)
"""Each TCB at which a platform was met. `id` is the SHA-256 of the PPID."""

PLATFORM_SIGHTINGS = _table(
    "platform_sightings",
    sa.Column("platform", WHOLE, sa.ForeignKey("platforms.number"), primary_key=True, autoincrement=False),
    _whole("seen", key=True),
    rows=False,
)
"""When platforms were met at a TCB: first and last before another one, and at most one a week between."""

CURRENT_PLATFORMS = _table(
    "current_platforms",
    _text("id", key=True),
    _text("tee", key=True),
    _whole("platform"),
    _whole("last_seen"),
    rows=False,
)
"""The TCB at which a platform was met last, and when: derived from the two above, because no query is as fast."""

REGISTRATIONS = _table(
    "registrations",
    _text("qe_id", key=True),
    _text("pce_id", key=True),
    _text("cpu_svn", key=True),
    _whole("pce_svn", key=True),
    _blob("encrypted_ppid", null=True),
    _blob("platform_manifest", null=True),
    *map(_text, ("fmspc", "state")),
    *map(_whole, ("since", "last_seen")),
    sa.Column("began", WHOLE, nullable=False, server_default="0"),
    sa.Index("registrations_listed", "state", "fmspc", "qe_id", "pce_id", "cpu_svn", "pce_svn"),
    sa.Index("registrations_due", "state", "since", "qe_id", "pce_id", "cpu_svn", "pce_svn"),
    sa.Index("registrations_seen", "qe_id", "pce_id", "last_seen"),
)
"""Platforms that asked a collateral service, as they are now. The state `began`, and was found again at `since`."""

FORMER_REGISTRATIONS = _table(
    "former_registrations",
    _serial("id"),
    *map(_text, ("qe_id", "pce_id", "cpu_svn")),
    _whole("pce_svn"),
    _text("state"),
    _blob("platform_manifest", null=True),
    _whole("since"),
    sa.Index("former_registrations_of_platform", "qe_id", "pce_id", "id"),
)
"""States that registrations had, and `since` when; manifests that were replaced (NULL: it was not)."""

REGISTRATION_COUNTS = _table("registration_counts", _text("state", key=True), _whole("registered"), rows=False)
"""Rows by state, so that none must be counted."""

PCK_CLAIMS = _table(
    "pck_claims",
    _text("qe_id", key=True),
    _text("pce_id", key=True),
    _text("cpu_svn", key=True),
    _whole("pce_svn", key=True),
    _text("caller", key=True),
    _text("processor", key=True),
    _blob("encrypted_ppid", null=True),
    *map(_blob, ("tcbm", "root", "certificate")),
    _reference("chain", "chains"),
    *map(_text, ("fmspc", "ca")),
    *map(_whole, ("first_seen", "last_seen")),
    sa.Column("number", WHOLE, nullable=False, server_default="0"),
    sa.Index("pck_claims_of_caller", "caller", "last_seen"),
    sa.Index("pck_claims_seen", "last_seen"),
    sa.Index("pck_claims_of_processor", "processor"),
    sa.Index("pck_claims_numbered", "number"),
)
"""What callers without a token asked for: it holds for their address alone. `processor` is SHA-256 of the PPID,
`number` grows with each claim."""

APPRAISAL_POLICIES = _table(
    "appraisal_policies",
    _text("id", key=True),
    _text("fmspc", key=True),
    _whole("is_default"),
    _text("policy"),
    rows=False,
)
sa.Index(
    "appraisal_policies_default",
    APPRAISAL_POLICIES.c.fmspc,
    unique=True,
    sqlite_where=APPRAISAL_POLICIES.c.is_default == 1,
    postgresql_where=APPRAISAL_POLICIES.c.is_default == 1,
)

CHANGES = _table("store_changes", _whole("id", key=True), _whole("number"))
"""One row: how many transactions have written. What a process keeps in memory holds while it stays the same."""

LEASES = lease_table(METADATA)
