"""Copies the tables of a service from one database to another, and compares every row; can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from confcom.database.engine import Database
from confcom.database.revisions import Chain
from confcom.errors import ConfigError

PAGE = 500
"""Rows of one transaction."""


def copy_database(source: Database, target: Database, chain: Chain) -> Iterator[tuple[str, int]]:
    """Copy every table, and give its name and its number of rows once each of them was compared with the source's.

    The source is read as of one moment. A copy that was interrupted is begun again: rows that are there already are
    compared, and those that a service changes are replaced.

    Raises:
        ConfigError: the target has another row where the source has one of its history: it holds other data.
        DatabaseError: one of the two cannot be used.
    """
    with source.read() as connection:
        for table in chain.metadata.sorted_tables:
            rows = connection.execution_options(yield_per=PAGE).execute(sa.select(table).order_by(*table.primary_key))
            copied = 0
            for page in rows.partitions(PAGE):
                _copy_page(target, table, [_taken(row._asdict()) for row in page], history=_is_history(chain, table))
                copied += len(page)
            _continue_numbers(target, table)
            yield table.name, copied


def _is_history(chain: Chain, table: sa.Table) -> bool:
    rights = chain.rights[table.name]
    return "UPDATE" not in rights and "DELETE" not in rights


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
