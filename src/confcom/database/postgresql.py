"""Connections to PostgreSQL by psycopg: with deadlines for every answer, whatever happens to the network."""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

CONNECT_TIMEOUT = 5
"""Seconds to connect to one address of the server."""
STATEMENT_TIMEOUT = 15.0
"""Seconds of one statement; the server ends it."""
READ_ONLY = "25006"
"""SQLSTATE of a server that another one has taken over from, or that lacks space: a new connection finds the other."""
ANSWER_TIMEOUT = STATEMENT_TIMEOUT + 5
"""Seconds after which a connection without an answer is given up: the server or the network is gone."""
_KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""A peer that vanished is noticed in about 11 seconds, also while nothing is sent."""


class Connection(psycopg.Connection[Any]):
    """A connection that is closed where an answer takes longer than `ANSWER_TIMEOUT`."""

    def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, timeout: float | None = None) -> Any:  # noqa: ANN401 - psycopg's
        """Every exchange with the server goes through here; a `timeout` of psycopg's own ends as usual."""
        end = time.monotonic() + ANSWER_TIMEOUT
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT if timeout is None else timeout)
        except psycopg.OperationalError:
            if timeout is None and time.monotonic() >= end:
                self.close()
                raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT:g} seconds") from None
            raise


def connect(url: sa.URL, **more: Any) -> Connection:  # noqa: ANN401 - psycopg's parameters
    """A connection of its own, for what no pool serves: `psycopg.Error` if there is none."""
    _, parameters = url.get_dialect()().create_connect_args(url)
    return Connection.connect(**_settings(parameters), **more)


def engine(url: sa.URL, *, connections: int, busy_timeout: float) -> sa.Engine:
    """A pool of at most `connections`, in autocommit: transactions begin where `Database` says so.

    Before use a connection is tested only if it has input, such as its end: that saves an exchange with the server.
    """
    made = sa.create_engine(
        url, pool_size=connections, max_overflow=0, pool_timeout=busy_timeout, pool_pre_ping=True, pool_use_lifo=True
    )

    @event.listens_for(made, "do_connect")
    def _(_dialect: object, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> Connection:
        return Connection.connect(*arguments, **_settings(parameters))

    @event.listens_for(made, "connect")
    def _(connection: Connection, _record: object) -> None:
        # Not as options of the connection, which poolers between do not pass on.
        connection.autocommit = True
        connection.execute(
            f"SET statement_timeout = {int(STATEMENT_TIMEOUT * 1000)}; SET lock_timeout = {int(busy_timeout * 1000)}; "
            f"SET idle_in_transaction_session_timeout = {int(ANSWER_TIMEOUT * 1000)}"
        )

    @event.listens_for(made, "handle_error")
    def _(failed: sa.engine.ExceptionContext) -> None:
        if getattr(failed.original_exception, "sqlstate", None) == READ_ONLY:
            failed.is_disconnect = True

    ping = made.dialect.do_ping
    made.dialect.do_ping = lambda dbapi_connection: not _has_input(dbapi_connection) or ping(dbapi_connection)  # type: ignore[method-assign]
    return made


def _has_input(connection: Any) -> bool:  # noqa: ANN401 - SQLAlchemy's name for a `Connection`
    """Whether an idle connection has something to read: a last message, a notice, or its end."""
    watch = select.poll()
    watch.register(connection.pgconn.socket, select.POLLIN)
    return bool(watch.poll(0))


def _settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"connect_timeout": CONNECT_TIMEOUT, "application_name": "confcom", **_KEEPALIVE, **parameters}
