"""`migrate` of the services: the schema of a database, what another one holds, and the rights of a role."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.cli.daemons import needing
from confcom.cli.options import FILE
from confcom.errors import ConfigError

if TYPE_CHECKING:
    from confcom.database.engine import Database
    from confcom.database.revisions import Chain


def migrate_command(store_option: Callable[[Any], Any], home: str) -> click.Command:
    """The command of a service; `store_option` names its store, and the module `home` has its `CHAIN`."""

    @click.command("migrate", short_help="Bring a store's schema up to date; copy SQLite to PostgreSQL.")
    @store_option
    @click.option("--from", "source", metavar="PATH", type=FILE, help="Copy the rows of this SQLite file into it.")
    @click.option("--role", metavar="NAME", help="Give this role of PostgreSQL the rights that the service needs.")
    def migrate(store: str, source: Path | None, role: str | None) -> None:
        """Bring the schema of a store up to date; with --from, copy an SQLite file into it.

        In PostgreSQL the command needs a role that may change the schema; the service does not. Stop the service
        before its file is copied. After an interruption, run the same command again.
        """
        with needing("the store", "services,cli,postgres"):
            chain = importlib.import_module(home).CHAIN
        _migrate(chain, store, source, role)

    return migrate


def _migrate(chain: Chain, store: str, source: Path | None, role: str | None) -> None:
    """Bring `store` to the newest revision, copy `source` into it, and let `role` serve; each step is printed."""
    from confcom.database.engine import Database, DatabaseAddress

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
    from confcom.database.engine import Database, DatabaseAddress
    from confcom.database.revisions import copy_database

    if not source.exists():
        raise ConfigError(f"there is no store at {source}", advice="Name the SQLite file of the service (--from).")
    with closing(Database(DatabaseAddress.parse(source))) as opened:
        opened.check()
        chain.check(opened)
        for table, rows in copy_database(opened, target, chain):
            click.echo(f"{table}: {rows:,} rows copied and compared")
