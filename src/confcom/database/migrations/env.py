"""Alembic's entry point: runs the revisions on the connection of `confcom.database.revisions`, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
