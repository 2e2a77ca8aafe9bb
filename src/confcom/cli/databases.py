"""`migrate` of the services: the schema of a database, what another one holds, and the rights of a role."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from confcom.database.copying import copy_database
from confcom.database.engine import Database, DatabaseAddress
from confcom.database.revisions import Chain
from confcom.errors import ConfigError


def migrate_database(chain: Chain, store: str, source: Path | None, role: str | None) -> None:
    """Bring `store` to the newest revision, copy `source` into it, and let `role` serve; each step is printed."""
    with closing(Database(DatabaseAddress.parse(store))) as target:
        if role is not None and not target.shared:
            raise ConfigError("--role is a role of PostgreSQL", advice="Leave it out: files have permissions instead.")
        before = chain.upgrade(target)
        was = "" if before == chain.newest else f", was {before}" if before else ", new"
        click.echo(f"{target.address}: schema {chain.newest}{was}")
        if source is not None:
            _copy(chain, source, target)
        if role is not None:
            chain.grant(target, role)
            click.echo(f"{role} may serve, and not change the schema")


def _copy(chain: Chain, source: Path, target: Database) -> None:
    if not source.exists():
        raise ConfigError(f"there is no store at {source}", advice="Name the SQLite file of the service (--from).")
    with closing(Database(DatabaseAddress.parse(source))) as opened:
        opened.check()
        chain.check(opened)
        for table, rows in copy_database(opened, target, chain):
            click.echo(f"{table}: {rows:,} rows copied and compared")
