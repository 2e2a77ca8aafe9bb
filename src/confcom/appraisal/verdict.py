"""The four outcomes of judging evidence."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """`undecided` means that present collateral was missing: neither authentic nor forged could be shown.

    Only `ACCEPTED` is true: a plain enumeration of strings would be true for every member.
    """

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INVALID = "invalid"
    UNDECIDED = "undecided"

    def __bool__(self) -> bool:
        return self is Verdict.ACCEPTED
