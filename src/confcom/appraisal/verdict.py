"""The four outcomes of judging evidence."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """`undecided` means that present collateral was missing: neither authentic nor forged could be shown."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INVALID = "invalid"
    UNDECIDED = "undecided"
