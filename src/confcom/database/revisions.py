"""The schema of a service's database, and copies of it: a chain of revisions, each run once, by one process at a time.

An SQLite file is brought up to date by the service that opens it. In PostgreSQL a command does so, with a role that
may change the schema; services have a role that may not, and refuse another revision.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from confcom.database.engine import Database
from confcom.errors import ConfigError

_UPGRADING = threading.Lock()
"""Alembic's context belongs to the process: two upgrades at a time would mix up their connections."""
_VERSION_TABLE = "alembic_version"
PAGE = 500
"""Rows of one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The revisions of one service."""

    service: str
    """As on the command line: `confcom SERVICE migrate`."""
    versions: str
    """Package with one module per revision, as PACKAGE:FOLDER."""
    first_table: str
    """A table that stores from before the chain have too; a database with other tables alone belongs to another
    program or service."""
    metadata: sa.MetaData
    """The tables after the newest revision."""
    rights: Mapping[str, str]
    """By table, what the role of the service may do in PostgreSQL. What it may not UPDATE or DELETE is a history."""
    functions: tuple[str, ...] = ()
    """Functions that it may call."""

    def upgrade(self, database: Database) -> str:
        """Run the revisions that the database lacks, all or none; the revision before, empty for a new database.

        Raises:
            ConfigError: the database is a newer confcom's or another program's.
            DatabaseError: it cannot be used.
        """
        with _UPGRADING, database.write(f"schema of {self.service}") as connection:
            found = self._found(database, connection)
            if found != self.newest:
                command.upgrade(self._config(connection), "head")
        return found

    def grant(self, database: Database, role: str) -> None:
        """Let a role of PostgreSQL serve: use the tables by `rights` alone, and not change the schema."""
        with database.write(f"schema of {self.service}") as connection:
            quote = connection.dialect.identifier_preparer.quote
            schema, role = quote(str(connection.execute(sa.select(sa.func.current_schema())).scalar())), quote(role)
            rights = [
                f"USAGE ON SCHEMA {schema}",
                f"USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
                f"SELECT ON {schema}.{_VERSION_TABLE}",
                *(f"{allowed} ON {schema}.{quote(table)}" for table, allowed in self.rights.items()),
                *(f"EXECUTE ON FUNCTION {schema}.{quote(name)}" for name in self.functions),
            ]
            connection.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}")
            for right in rights:
                connection.exec_driver_sql(f"GRANT {right} TO {role}")

    def check(self, database: Database) -> None:
        """Refuse another revision than the newest with a `ConfigError`."""
        with database.read() as connection:
            found = self._found(database, connection)
        if found != self.newest:
            how = f"Run `confcom {self.service} migrate` with a role that may change the schema."
            raise ConfigError(
                f"{database.address} has {f'the older schema {found!r}' if found else 'no schema, or an early one'}; "
                f"this confcom uses {self.newest!r}",
                advice=how if database.shared else "Start the service once: it migrates its store.",
            )

    @property
    def newest(self) -> str:
        """The revision that this confcom uses."""
        return str(ScriptDirectory.from_config(self._config()).get_current_head())

    def _found(self, database: Database, connection: sa.Connection) -> str:
        tables = set(sa.inspect(connection).get_table_names()) - {_VERSION_TABLE}
        if tables and self.first_table not in tables:
            raise ConfigError(
                f"{database.address} is a database of another program or service: it has the table {min(tables)!r}",
                advice="Name another database with --store.",
            )
        found = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(self._config())
        if found is not None and found not in {each.revision for each in script.walk_revisions()}:
            raise ConfigError(
                f"{database.address} has the schema revision {found!r} of a newer confcom; this one knows revisions "
                f"up to {self.newest!r}",
                advice="Run the newer version, or name another database with --store.",
            )
        return found or ""

    def _config(self, connection: sa.Connection | None = None) -> Config:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "confcom.database:migrations")
        config.set_main_option("version_locations", self.versions)
        config.set_main_option("path_separator", "newline")
        return config


def copy_database(source: Database, target: Database, chain: Chain) -> Iterator[tuple[str, int]]:
    """Copy every table, and give its name and its number of rows once each of them was compared with the source's.

    The source is read as of one moment. A copy that was interrupted is begun again: rows that are there already are
    compared, and those that a service changes are replaced.

    Raises:
        ConfigError: the target has another row where the source has one of its history: it holds other data.
        DatabaseError: one of the two cannot be used.
    """
    with source.read(paused=True) as connection:
        for table in chain.metadata.sorted_tables:
            rows = connection.execution_options(yield_per=PAGE).execute(sa.select(table).order_by(*table.primary_key))
            copied, rights = 0, chain.rights[table.name]
            history = "UPDATE" not in rights and "DELETE" not in rights
            for page in rows.partitions(PAGE):
                _copy_page(target, table, [_taken(row._asdict()) for row in page], history=history)
                copied += len(page)
            _continue_numbers(target, table)
            yield table.name, copied


def _copy_page(target: Database, table: sa.Table, rows: Sequence[dict[str, Any]], *, history: bool) -> None:
    names = [column.name for column in table.primary_key]
    with target.write() as connection:
        insert = target.insert(connection.dialect.name, table)
        others = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in names}
        if history or not others:
            connection.execute(insert.on_conflict_do_nothing(), rows)
        else:
            connection.execute(insert.on_conflict_do_update(index_elements=names, set_=others), rows)
        wanted = {_key(row, names): row for row in rows}
        there = sa.select(table).where(sa.tuple_(*table.primary_key).in_(list(wanted)))
        found = {_key(row, names): row for row in map(sa.Row._asdict, connection.execute(there))}
        if differing := next((key for key, row in wanted.items() if found.get(key) != row), None):
            named = ", ".join(f"{name} {value!r}" for name, value in zip(names, differing, strict=True))
            raise ConfigError(
                f"{target.address} has another row in {table.name} ({named}) than the database that is copied",
                advice="Copy into a new database; one that a service has used holds data of its own.",
            )


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _continue_numbers(target: Database, table: sa.Table) -> None:
    """Have PostgreSQL number new rows after those that were copied with their numbers."""
    column = table.autoincrement_column
    if target.shared and column is not None:
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        newest = sa.select(sa.func.max(column)).scalar_subquery()
        with target.write() as connection:
            connection.execute(sa.select(sa.func.setval(sequence, newest)).where(newest.is_not(None)))


def _taken(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without NUL in texts, which PostgreSQL does not take."""
    return {name: value.replace("\0", "\ufffd") if isinstance(value, str) else value for name, value in row.items()}
