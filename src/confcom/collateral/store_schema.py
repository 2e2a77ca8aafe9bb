"""The tables of the collateral store, as the list of the steps that made them (docs/reference/collateral-store.md).

Times are seconds since 1970 in UTC. A step that was released is never changed: the next one is appended.
"""

from __future__ import annotations

APPLICATION_ID = 0x43434F4C
"""`PRAGMA application_id`, "CCOL": tells a store from any other SQLite file."""

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
