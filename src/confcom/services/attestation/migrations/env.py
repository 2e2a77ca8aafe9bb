"""Alembic's entry point: runs the revisions on the connection that the store opened, in its transaction."""

from alembic import context

from confcom.services.attestation.attestation_store import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
