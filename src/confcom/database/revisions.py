"""The schema of a service's database: a chain of revisions, each run once, by one process at a time.

An SQLite file is brought up to date by the service that opens it. In PostgreSQL a command does so, with a role that
may change the schema; services have a role that may not, and refuse another revision.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

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
