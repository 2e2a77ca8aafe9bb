"""Allowances per address: exact, forgotten after the window, bounded in memory."""

from __future__ import annotations

import pytest

from confcom.services.collateral.cache import AskedTooOften, Questions
from confcom.services.runtime import allowances
from confcom.services.runtime.allowances import Allowance, address_of


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_go_on_until_it_has_spent_all_and_again_after_the_window() -> None:
    clock = Seconds()
    allowance = Allowance(3, clock)
    for _ in range(3):
        assert (allowance.wait("a"), allowance.spend("a")) == (0, 0)
        clock.now += 10
    assert (allowance.wait("a"), allowance.spend("a"), allowance.wait("b")) == (30, 30, 0)
    clock.now += 29.5
    assert allowance.wait("a") == 1
    clock.now += 0.5
    assert allowance.wait("a") == 0
    allowance.spend("a")
    assert allowance.wait("a") == 0


def test_a_clock_that_is_set_back_locks_nobody_for_long() -> None:
    clock = Seconds()
    allowance = Allowance(1, clock)
    allowance.spend("a")
    clock.now -= 5000
    assert allowance.wait("a") == 0


def test_addresses_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "MAX_ADDRESSES", 100)
    allowance = Allowance(1, Seconds())
    for number in range(1000):
        allowance.spend(str(number))
    assert allowance.wait("999") > 0
    assert allowance.wait("899") == 0
    assert len(allowance._spent) == 100


def test_questions_are_limited_per_address_and_for_all() -> None:
    clock = Seconds()
    questions = Questions(2, 3, clock)
    questions.spend("a")
    questions.spend("a")
    with pytest.raises(AskedTooOften, match="this address"):
        questions.spend("a")
    questions.spend("b")
    with pytest.raises(AskedTooOften, match="callers"):
        questions.spend("c")
    clock.now += 60
    questions.spend("a")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a name", "a name"),
    ],
)
def test_an_ipv6_network_is_one_address(host: str, address: str) -> None:
    assert address_of({"client": (host, 1)}) == address


def test_a_unix_socket_has_one_address() -> None:
    assert address_of({"client": None}) == ""
