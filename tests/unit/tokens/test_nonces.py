"""Nonces are good for minutes, by any clock that made them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from confcom.formats.arguments import decode_base64
from confcom.tokens.azure import NONCE_LIFE, make_nonce, state_of_nonce

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SECRET = bytes(32)


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (timedelta(), "good"),
        (-NONCE_LIFE, "good"),
        (-NONCE_LIFE - timedelta(seconds=1), "expired"),
        (NONCE_LIFE, "good"),  # by another replica
        # By a clock that was far ahead: its record as used would be forgotten before it ends.
        (NONCE_LIFE + timedelta(seconds=1), "expired"),
        (timedelta(days=4000), "expired"),
    ],
)
def test_a_nonce_is_good_for_minutes(made: timedelta, state: str) -> None:
    raw = decode_base64(make_nonce(SECRET, NOW + made, bytes(16)))
    assert state_of_nonce(raw, SECRET, NOW) == state
    assert state_of_nonce(raw, b"another" + bytes(25), NOW) == "unknown"
