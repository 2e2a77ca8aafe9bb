"""Checks of this machine's clock by the dates of collateral.

Documents are issued in the past and used within weeks, so a clock far from them is more likely wrong than they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from confcom.errors import ClockError, FormatError

TOLERANCE = timedelta(hours=1)
"""A clock may be behind the issue of a document by this; Intel issues hours before it serves."""

ABANDONED = timedelta(days=730)
"""When everything expired longer ago than this, the clock may be ahead: a store in use is filled every month."""


MAX_AHEAD = timedelta(days=1)
"""Times in the future by less than this come from a clock that was ahead, and count as of now."""


@dataclass(frozen=True, slots=True)
class Dates:
    """The latest issue, and the latest expiry, of some documents."""

    issued: datetime
    expires: datetime

    @classmethod
    def of(cls, documents: Iterable[tuple[datetime, datetime]]) -> Dates | None:
        """The dates of documents by issue and expiry; None where there are none."""
        pairs = list(documents)
        return cls(max(issued for issued, _ in pairs), max(expires for _, expires in pairs)) if pairs else None

    def clock_behind(self, now: datetime) -> str:
        """Why the clock is behind; empty where it need not be."""
        if self.issued - now <= TOLERANCE:
            return ""
        return (
            f"this machine's clock says {rfc3339(now)}, but collateral was issued at {rfc3339(self.issued)}: "
            f"the clock is behind"
        )

    def clock_problem(self, now: datetime) -> str:
        """Why the clock is behind, or probably ahead; empty where neither is."""
        if now - self.expires <= ABANDONED:
            return self.clock_behind(now)
        return (
            f"this machine's clock says {rfc3339(now)}, and all collateral expired by {rfc3339(self.expires)}: the "
            f"clock is ahead, or nothing was fetched for years"
        )

    def require_clock(self, now: datetime) -> None:
        """Refuse to take documents in by a clock that is behind their issue: `ClockError`."""
        problem = self.clock_behind(now)
        if problem:
            raise ClockError(problem)


def at_most(seen: datetime, now: datetime, what: str) -> datetime:
    """The time at which another machine saw something, not after now; `ClockError` where no small fault explains it."""
    if seen.tzinfo is None:
        raise FormatError("a time has no time zone", structure="archive", field=what)
    if seen - now > MAX_AHEAD:
        raise ClockError(
            f"{what} of the archive was seen at {rfc3339(seen)}, but this machine's clock says {rfc3339(now)}: this "
            "clock is behind, or that of the machine which wrote the archive was ahead",
            advice="Compare both clocks with the true time. If this one is right, import the archive after that time.",
        )
    return min(seen, now)


def rfc3339(time: datetime) -> str:
    """The time in UTC, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
