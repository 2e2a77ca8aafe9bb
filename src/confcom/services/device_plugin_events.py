"""What the device plugin tells of itself: events, to which a log and metrics listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """One thing that happened to a resource; `name` is the log's event. `trouble` is worth a warning."""

    name: str
    resource: str
    fields: Mapping[str, object] = field(default_factory=dict)
    trouble: bool = False


Observer: TypeAlias = Callable[[PluginEvent], None]


def log_event(event: PluginEvent) -> None:
    """Write the event to the log."""
    logger = structlog.get_logger()
    write = logger.warning if event.trouble else logger.info
    write(event.name, resource=event.resource, **event.fields)
