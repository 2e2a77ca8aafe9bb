"""Policies in force, their signers, and a record of every appraisal.

Stores of the first releases have these tables and no revision.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, unless an early release has made them."""
    if "appraisal" in sa.inspect(op.get_bind()).get_table_names():
        return
    op.create_table(
        "policy",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("jws", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("signer", sa.LargeBinary),
        sa.Column("changed", sa.DateTime, nullable=False),
    )
    op.create_table(
        "policy_signer",
        sa.Column("thumbprint", sa.String(40), primary_key=True),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "appraisal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("policy_hash", sa.String(64), nullable=False),
        sa.Column("evidence_hash", sa.String(64), nullable=False),
        sa.Column("claims", sa.Text, nullable=False),
    )
