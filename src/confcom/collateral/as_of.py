"""Which version of a document was in force at a time: the rule of the store, apart from the store.

(1) A number asked for is taken alone. Of `standard` and `early`, the versions that were served under that name.
(2) Such a name moves to a higher number when Intel promotes one, never back: the number in force at T is the highest
    that was known by T. A version is known from the time it was first seen under the name; if it was seen only after
    it had expired (an archive), that time says nothing, and it counts as known from its issue.
(3) Of the versions with that number or a higher one, those valid at T; the lowest number first, then the latest issue.
    A lower number is never fallen back to, or an old source could undo a promotion.
(4) Is none valid at T, the one that was valid nearest to T: the verifier then says what is stale, and since when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confcom.protocols.pcs import Update


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version: `id` grows with each one that the store takes in; times are seconds since 1970.

    `first_seen` is when it was first served as the set that is asked for, None if it never was.
    """

    id: int
    number: int
    issue_date: int
    next_update: int
    first_seen: int | None

    def valid(self, at: int) -> bool:
        """Both ends included."""
        return self.issue_date <= at <= self.next_update

    def distance(self, at: int) -> int:
        """Seconds between `at` and its validity."""
        return max(self.issue_date - at, at - self.next_update, 0)

    def known_since(self) -> int:
        """See (2)."""
        seen = self.issue_date if self.first_seen is None else self.first_seen
        return seen if seen <= self.next_update else self.issue_date


def choose(candidates: Sequence[Candidate], *, at: int, update: Update | None) -> Candidate | None:
    """The version in force at `at` (seconds since 1970); None if there is no candidate of the set."""
    # (1)
    if isinstance(update, int):
        pool = [candidate for candidate in candidates if candidate.number == update]
    else:
        pool = [candidate for candidate in candidates if candidate.first_seen is not None]
    if not pool:
        return None
    if update in ("standard", "early"):
        # (2)
        floor = _number_in_force(pool, at)
        pool = [candidate for candidate in pool if candidate.number >= floor]
    # (3)
    valid = [candidate for candidate in pool if candidate.valid(at)]
    if valid and update is not None:
        return max(valid, key=lambda candidate: (-candidate.number, candidate.issue_date, candidate.id))
    if valid:
        # Of CRLs, whose numbers only count them, the latest issue.
        return max(valid, key=lambda candidate: (candidate.issue_date, candidate.number, candidate.id))
    # (4)
    return min(pool, key=lambda candidate: (candidate.distance(at), -candidate.issue_date, -candidate.id))


def _number_in_force(pool: Sequence[Candidate], at: int) -> int:
    known = [candidate.number for candidate in pool if candidate.known_since() <= at]
    return max(known) if known else min(candidate.number for candidate in pool)
