"""What a verification or an appraisal looked at: one `Check` per question, for people and for `--json`."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One question and its answer.

    `id` is stable and kebab-case, `expected` and `found` are text for people, `advice` says what to do when the
    answer is no (empty when it is yes). A check is true when it is ok.
    """

    id: str
    ok: bool
    expected: str
    found: str
    advice: str = ""

    def __bool__(self) -> bool:
        return self.ok


def finding(identifier: str, ok: object, expected: str, found: str, advice: str) -> Check:
    """A check; its advice counts only when it is not ok."""
    return Check(identifier, ok=bool(ok), expected=expected, found=found, advice="" if ok else advice)


def passed(identifier: str, expected: str, found: str) -> Check:
    """A check that is ok."""
    return Check(identifier, ok=True, expected=expected, found=found)


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
