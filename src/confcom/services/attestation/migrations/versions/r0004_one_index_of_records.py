"""Records have one index, which grows at its end: hashes are in no order, so each changed another page of theirs."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """A search for evidence reads the hashes in the index, and no record but those that it finds."""
    op.drop_index("ix_appraisal_evidence_hash", "appraisal")
    op.drop_index("ix_appraisal_at", "appraisal")
    op.create_index("ix_appraisal_at_evidence_hash", "appraisal", ["at", "evidence_hash"])
