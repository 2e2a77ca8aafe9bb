"""A window includes both its ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from confcom.pki.chain import Window

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_both_ends_belong_to_the_window() -> None:
    window = Window("TCB info", BEGIN, END)
    assert [window.contains(now) for now in (BEGIN - SECOND, BEGIN, END, END + SECOND)] == [False, True, True, False]


def test_without_an_end_it_never_ends() -> None:
    window = Window("TCB info", BEGIN, None)
    assert not window.contains(BEGIN - SECOND)
    assert window.contains(datetime.max.replace(tzinfo=UTC))
