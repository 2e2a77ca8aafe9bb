"""Changes of policies and signers are appended with the administrator's name; signing keys and nonces are shared."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Turn the policies in force into the first changes. Earlier stores kept no administrator, so the name is empty."""
    op.create_table(
        "policy_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("administrator", sa.String(256), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False, index=True),
        sa.Column("jws", sa.Text),
        sa.Column("text", sa.Text),
        sa.Column("signer", sa.LargeBinary),
    )
    op.execute(
        "INSERT INTO policy_change (at, administrator, kind, jws, text, signer) "
        "SELECT changed, '', kind, jws, text, signer FROM policy ORDER BY changed"
    )
    op.drop_table("policy")
    op.create_table(
        "signer_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("administrator", sa.String(256), nullable=False),
        sa.Column("thumbprint", sa.String(40), nullable=False, index=True),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
    )
    op.execute(
        "INSERT INTO signer_change (at, administrator, thumbprint, certificate, accepted) "
        "SELECT '1970-01-01 00:00:00.000000', '', thumbprint, certificate, 1 = 1 FROM policy_signer"
    )
    op.drop_table("policy_signer")
    op.create_index("ix_appraisal_evidence_hash", "appraisal", ["evidence_hash"])
    op.create_table(
        "signing_key",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("jwk", sa.Text, nullable=False),
        sa.Column("published", sa.DateTime, nullable=False),
        sa.Column("held", sa.DateTime, nullable=False),
        sa.Column("revoked", sa.DateTime),
    )
    op.create_table(
        "used_nonce",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("until", sa.DateTime, nullable=False, index=True),
    )
    op.create_table(
        "secret",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
