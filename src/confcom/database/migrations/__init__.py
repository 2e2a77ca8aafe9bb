"""Alembic's entry point for every chain of revisions."""
