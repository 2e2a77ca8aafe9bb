"""Logs of the daemons: one event per request, JSON on stderr, readable on a terminal. Metrics will live here too."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import structlog


def configure_logging(*, verbose: bool = False, pretty: bool | None = None) -> None:
    """Set the process's logging up: JSON lines, or columns when stderr is a terminal (or `pretty` says so)."""
    level = "debug" if verbose else "info"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty if pretty is not None else sys.stderr.isatty():
        processors = [*shared, structlog.dev.ConsoleRenderer()]
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        processors = [
            *shared,
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(serializer=_json),
        ]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
    )


def _json(event: object, **_: object) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)
