"""One index of records, by time and evidence hash; an index of hashes alone changes a random page with each record."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """A search for an evidence hash scans the index, and reads only the records that match."""
    op.drop_index("ix_appraisal_evidence_hash", "appraisal")
    op.drop_index("ix_appraisal_at", "appraisal")
    op.create_index("ix_appraisal_at_evidence_hash", "appraisal", ["at", "evidence_hash"])
