"""Changes of signing keys are appended; replicas share leases. In PostgreSQL a function alone removes old records."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_FORGET = """
CREATE FUNCTION {schema}.forget_appraisals(before timestamp, beyond bigint, most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
  WITH gone AS (
    DELETE FROM {schema}.appraisal WHERE id IN (
      SELECT id FROM {schema}.appraisal
      WHERE (at < before OR id <= beyond) AND at < now() AT TIME ZONE 'UTC' - interval '1 day'
      ORDER BY id LIMIT most
    ) RETURNING 1
  ) SELECT count(*) FROM gone
$$
"""
"""A role that may call it, and not delete, cannot remove what happened in the last day."""


def upgrade() -> None:
    """Turn the published keys into the first changes."""
    op.create_table(
        "key_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False, index=True),
        sa.Column("jwk", sa.Text),
    )
    op.create_table(
        "key_held",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("held", sa.DateTime, nullable=False, index=True),
    )
    op.execute("INSERT INTO key_change (at, key_id, jwk) SELECT published, key_id, jwk FROM signing_key")
    op.execute("INSERT INTO key_change (at, key_id) SELECT revoked, key_id FROM signing_key WHERE revoked IS NOT NULL")
    op.execute("INSERT INTO key_held (key_id, held) SELECT key_id, held FROM signing_key")
    op.drop_table("signing_key")
    op.create_table(
        "lease",
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", sa.DateTime, nullable=False),
    )
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        schema = bind.dialect.identifier_preparer.quote(str(bind.execute(sa.text("SELECT current_schema()")).scalar()))
        op.execute(_FORGET.format(schema=schema))
        op.execute(f"REVOKE ALL ON FUNCTION {schema}.forget_appraisals FROM PUBLIC")
