"""The first revision on both engines: sightings, TCBs and choices of certificates are appended.

An SQLite file from before this chain (its `user_version` is 1 to 4) is taken over with all that it holds.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEPT = """
CREATE TABLE chains (id {serial}, digest {blob} NOT NULL UNIQUE, pem {blob} NOT NULL){strict};
CREATE TABLE documents (id {serial}, kind TEXT NOT NULL, tee TEXT NOT NULL, fmspc TEXT NOT NULL, ca TEXT NOT
    NULL, UNIQUE (kind, tee, fmspc, ca)){strict};
CREATE TABLE versions (id {serial}, document {whole} NOT NULL REFERENCES documents (id), digest {blob} NOT NULL,
    root {blob} NOT NULL, body {blob} NOT NULL, chain {whole} REFERENCES chains (id), number {whole} NOT NULL,
    issue_date {whole} NOT NULL, next_update {whole} NOT NULL, expires {whole} NOT NULL,
    UNIQUE (document, digest)){strict};
CREATE INDEX versions_to_choose_from ON versions (document, root, issue_date, next_update, number);
CREATE TABLE pck_certificates (id {serial}, qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, tcbm {blob} NOT NULL,
    digest {blob} NOT NULL, root {blob} NOT NULL, certificate {blob} NOT NULL, chain {whole} NOT NULL REFERENCES
    chains (id), fmspc TEXT NOT NULL, ca TEXT NOT NULL, source TEXT NOT NULL, first_seen {whole} NOT NULL, last_seen
    {whole} NOT NULL, UNIQUE (qe_id, pce_id, digest)){strict};
CREATE TABLE registrations (qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, cpu_svn TEXT NOT NULL, pce_svn {whole}
    NOT NULL, encrypted_ppid {blob}, platform_manifest {blob}, fmspc TEXT NOT NULL, state TEXT NOT NULL, since
    {whole} NOT NULL, last_seen {whole} NOT NULL, PRIMARY KEY (qe_id, pce_id, cpu_svn, pce_svn)){strict};
CREATE INDEX registrations_listed ON registrations (state, fmspc, qe_id, pce_id, cpu_svn, pce_svn);
CREATE INDEX registrations_seen ON registrations (qe_id, pce_id, last_seen);
CREATE TABLE pck_claims (qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, cpu_svn TEXT NOT NULL, pce_svn {whole} NOT
    NULL, caller TEXT NOT NULL, processor TEXT NOT NULL, encrypted_ppid {blob}, tcbm {blob} NOT NULL, root {blob}
    NOT NULL, certificate {blob} NOT NULL, chain {whole} NOT NULL REFERENCES chains (id), fmspc TEXT NOT NULL, ca
    TEXT NOT NULL, first_seen {whole} NOT NULL, last_seen {whole} NOT NULL, PRIMARY KEY (qe_id, pce_id, cpu_svn,
    pce_svn, caller, processor)){strict};
CREATE INDEX pck_claims_of_caller ON pck_claims (caller, last_seen);
CREATE INDEX pck_claims_seen ON pck_claims (last_seen);
CREATE INDEX pck_claims_of_processor ON pck_claims (processor);
CREATE TABLE appraisal_policies (id TEXT NOT NULL, fmspc TEXT NOT NULL, is_default {whole} NOT NULL, policy TEXT
    NOT NULL, PRIMARY KEY (id, fmspc)){ordered};
CREATE UNIQUE INDEX appraisal_policies_default ON appraisal_policies (fmspc) WHERE is_default = 1;
"""
"""Tables that earlier stores have too, with their indexes."""

NEW = """
CREATE TABLE sightings (version {whole} NOT NULL REFERENCES versions (id), served_as TEXT NOT NULL, seen {whole}
    NOT NULL, source TEXT NOT NULL, PRIMARY KEY (version, served_as, seen, source)){ordered};
CREATE TABLE platform_tcbs (id {serial}, qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, cpu_svn TEXT NOT NULL,
    pce_svn {whole} NOT NULL, certificate {whole} NOT NULL REFERENCES pck_certificates (id), since {whole} NOT
    NULL){strict};
CREATE INDEX platform_tcbs_latest ON platform_tcbs (qe_id, pce_id, cpu_svn, pce_svn, id);
CREATE TABLE platforms (number {serial}, id TEXT NOT NULL, tee TEXT NOT NULL, fmspc TEXT NOT NULL, ca TEXT NOT
    NULL, sgx_components {blob} NOT NULL, pce_svn {whole} NOT NULL, cpu_svn {blob} NOT NULL, first_seen {whole} NOT
    NULL, last_seen {whole} NOT NULL){strict};
CREATE INDEX platforms_latest ON platforms (id, tee, last_seen, number);
CREATE TABLE former_registrations (id {serial}, qe_id TEXT NOT NULL, pce_id TEXT NOT NULL, cpu_svn TEXT NOT
    NULL, pce_svn {whole} NOT NULL, state TEXT NOT NULL, platform_manifest {blob}, since {whole} NOT NULL){strict};
CREATE INDEX former_registrations_of_platform ON former_registrations (qe_id, pce_id, id);
CREATE INDEX registrations_due ON registrations (state, since, qe_id, pce_id, cpu_svn, pce_svn);
CREATE TABLE registration_counts (state TEXT NOT NULL PRIMARY KEY, registered {whole} NOT NULL){ordered};
INSERT INTO registration_counts SELECT s.state, (SELECT count(*) FROM registrations r WHERE r.state = s.state)
    FROM (SELECT 'waiting' AS state UNION SELECT 'unavailable' UNION SELECT 'cached') AS s;
ALTER TABLE pck_claims ADD COLUMN number {whole} NOT NULL DEFAULT 0;
CREATE INDEX pck_claims_numbered ON pck_claims (number);
CREATE TABLE store_changes (id {whole} NOT NULL PRIMARY KEY, number {whole} NOT NULL){strict};
INSERT INTO store_changes VALUES (1, 0);
CREATE TABLE lease (name VARCHAR(256) NOT NULL PRIMARY KEY, holder VARCHAR(64) NOT NULL, until {time} NOT NULL);
"""

BEFORE = """
DROP TRIGGER IF EXISTS registration_added;
DROP TRIGGER IF EXISTS registration_removed;
DROP TRIGGER IF EXISTS registration_moved;
DROP INDEX IF EXISTS registrations_due;
DROP TABLE IF EXISTS registration_counts;
ALTER TABLE sightings RENAME TO former_sightings;
ALTER TABLE platform_tcbs RENAME TO former_platform_tcbs;
ALTER TABLE platforms RENAME TO former_platforms;
"""

AFTER = """
INSERT INTO sightings SELECT version, served_as, first_seen, source FROM former_sightings UNION SELECT version,
    served_as, last_seen, source FROM former_sightings;
INSERT INTO platform_tcbs (qe_id, pce_id, cpu_svn, pce_svn, certificate, since) SELECT t.qe_id, t.pce_id,
    t.cpu_svn, t.pce_svn, t.certificate, c.first_seen FROM former_platform_tcbs t JOIN pck_certificates c ON c.id =
    t.certificate;
INSERT INTO platforms (id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen, last_seen) SELECT id,
    tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen, last_seen FROM former_platforms ORDER BY
    first_seen;
UPDATE pck_claims SET number = rowid;
DROP TABLE former_sightings;
DROP TABLE former_platform_tcbs;
DROP TABLE former_platforms;
"""

# Version 1: the service made this table by itself. Zeros are what Intel's provider library sends for none.
OLDEST = """
ALTER TABLE registrations ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;
UPDATE registrations SET last_seen = since;
UPDATE registrations SET encrypted_ppid = NULL WHERE encrypted_ppid = zeroblob(384);
"""


def upgrade() -> None:
    """Make the tables; of an earlier store, keep those that stay and carry the rows of the others over."""
    connection = op.get_bind()
    lite = connection.dialect.name == "sqlite"
    words = {
        "serial": "INTEGER NOT NULL PRIMARY KEY" if lite else "BIGSERIAL PRIMARY KEY",
        "whole": "INTEGER" if lite else "BIGINT",
        "blob": "BLOB" if lite else "BYTEA",
        "time": "DATETIME" if lite else "TIMESTAMP",
        "strict": " STRICT" if lite else "",
        "ordered": " STRICT, WITHOUT ROWID" if lite else "",
    }
    found = sa.inspect(connection)
    tables = set(found.get_table_names())
    taken_over = lite and "documents" in tables
    if taken_over:
        if "registrations" in tables and "last_seen" not in {one["name"] for one in found.get_columns("registrations")}:
            _run(OLDEST)
        _run(BEFORE)
    for sql in _statements(KEPT):
        name = sql.split()[2] if sql.startswith("CREATE TABLE") else sql.partition(" ON ")[2].split()[0]
        if name not in tables:
            op.execute(sql.format(**words))
    _run(NEW.format(**words))
    if taken_over:
        _run(AFTER)
    if lite:
        op.execute(f"PRAGMA application_id = {0x43434F4C}")
        op.execute("PRAGMA user_version = 5")  # so that earlier versions of confcom refuse it


def _run(script: str) -> None:
    for sql in _statements(script):
        op.execute(sql)


def _statements(script: str) -> list[str]:
    return [sql for part in script.split(";") if (sql := part.strip())]
