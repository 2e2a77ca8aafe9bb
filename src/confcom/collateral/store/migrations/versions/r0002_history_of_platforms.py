"""Sightings of platforms are appended; before, each TCB had the first and the last time at which it was met.

Registrations know when their state began, and choices of certificates are ordered by time.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CARRY = """
INSERT INTO platform_sightings
SELECT t.number, p.first_seen FROM platforms p JOIN tcbs t ON t.member = p.number
UNION SELECT t.number, p.last_seen FROM platforms p JOIN tcbs t ON t.member = p.number;
INSERT INTO current_platforms
SELECT id, tee, number, last_seen FROM (
  SELECT p.id, p.tee, t.number, p.last_seen,
    row_number() OVER (PARTITION BY p.id, p.tee ORDER BY p.last_seen DESC, p.number DESC) AS place
  FROM platforms p JOIN tcbs t ON t.member = p.number) AS met
WHERE place = 1;
DELETE FROM platforms WHERE number NOT IN (SELECT number FROM tcbs);
DROP TABLE tcbs;
DROP INDEX platforms_latest;
ALTER TABLE platforms DROP COLUMN first_seen;
ALTER TABLE platforms DROP COLUMN last_seen;
CREATE INDEX platforms_of_id ON platforms (id, tee);
DROP INDEX platform_tcbs_latest;
CREATE INDEX platform_tcbs_latest ON platform_tcbs (qe_id, pce_id, cpu_svn, pce_svn, since, id);
UPDATE registrations SET began = since
"""
_TCBS = """
CREATE TEMPORARY TABLE tcbs AS SELECT number AS member,
  min(number) OVER (PARTITION BY id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn) AS number FROM platforms
"""
"""The first row of each TCB, which stays, by the rows of that TCB."""


def upgrade() -> None:
    """Turn each interval into its two ends."""
    options = {"sqlite_strict": True, "sqlite_with_rowid": False}
    op.create_table(
        "platform_sightings",
        sa.Column("platform", _WHOLE, sa.ForeignKey("platforms.number"), primary_key=True, autoincrement=False),
        sa.Column("seen", _WHOLE, primary_key=True, autoincrement=False),
        **options,
    )
    op.create_table(
        "current_platforms",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tee", sa.Text, primary_key=True),
        sa.Column("platform", _WHOLE, nullable=False),
        sa.Column("last_seen", _WHOLE, nullable=False),
        **options,
    )
    op.add_column("registrations", sa.Column("began", _WHOLE, nullable=False, server_default="0"))
    for sql in (_TCBS, *_CARRY.split(";")):
        op.execute(sql)
