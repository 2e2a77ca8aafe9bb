"""When something may be relied on: one window per certificate, CRL or signed JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Window:
    """The validity of one item, both ends included; times are UTC. `not_after` None means that no end is stated."""

    what: str
    not_before: datetime
    not_after: datetime | None

    def contains(self, now: datetime) -> bool:
        """Whether the item is valid at `now`: at exactly `not_after` it still is (RFC 5280 §4.1.2.5)."""
        return self.not_before <= now and (self.not_after is None or now <= self.not_after)
