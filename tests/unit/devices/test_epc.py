from __future__ import annotations

import pytest

from confcom.devices.sgx_node import ALPHABET, EpcPool, EpcSection, PoolSection, plan_pool, prefer_one_node
from confcom.errors import ConfigError

MIB = 1 << 20


def test_whole_mib_of_each_node() -> None:
    pool = plan_pool([EpcSection(0, 93 * MIB + 4096), EpcSection(1, MIB - 1)])
    assert pool.sections == (PoolSection(0, 93, 93), PoolSection(1, 0, 0))
    assert (pool.true_mib, pool.units) == (93, 93)


def test_sections_of_one_node_add_up_before_they_are_rounded() -> None:
    pool = plan_pool([EpcSection(None, MIB // 2), EpcSection(None, MIB // 2)])
    assert pool.units == 1


def test_the_reserve_goes_off_first_and_the_ratio_applies_to_the_rest() -> None:
    pool = plan_pool([EpcSection(0, 100 * MIB), EpcSection(1, 100 * MIB)], reserve_mib=100, overcommit=1.15)
    assert pool.sections == (PoolSection(0, 100, 0), PoolSection(1, 100, 115))
    # 115 exactly; binary floating point would make 114 of it.
    assert pool.true_mib == 200


def test_ids_are_short_distinct_and_say_where_the_unit_is() -> None:
    ids = PoolSection(2, 5000, 5000).ids
    assert ids[:3] == ("2000", "2001", "2002")
    assert ids[63:66] == ("200_", "2010", "2011")
    assert ids[4096] == "2100"
    assert len(set(ids)) == 5000
    assert {len(unit) for unit in ids} == {4}
    assert PoolSection(None, 1, 1).ids == ("_000",)


def test_ids_stay_when_the_pool_grows_or_shrinks() -> None:
    small, large = PoolSection(0, 100, 100).ids, PoolSection(0, 100, 150).ids
    assert large[:100] == small


def test_nodes_beyond_the_alphabet_are_of_unknown_place() -> None:
    pool = plan_pool([EpcSection(63, MIB), EpcSection(200, MIB)])
    assert pool.sections == (PoolSection(None, 2, 2),)


def test_more_units_than_ids_are_refused() -> None:
    assert len(PoolSection(0, 64**3, 64**3).ids[-1]) == 4
    with pytest.raises(ConfigError, match="262145 units"):
        _ = PoolSection(0, 64**3 + 1, 64**3 + 1).ids


def test_the_alphabet_sorts_as_it_counts() -> None:
    assert len(set(ALPHABET)) == 64
    assert ALPHABET.isascii()


def pool_ids(*units: int) -> tuple[str, ...]:
    pool = EpcPool(tuple(PoolSection(number, count, count) for number, count in enumerate(units)))
    return tuple(unit for section in pool.sections for unit in section.ids)


def test_the_fullest_node_that_has_enough_is_preferred() -> None:
    available = pool_ids(10, 6, 20)
    assert {unit[0] for unit in prefer_one_node(available, (), 6)} == {"1"}
    assert {unit[0] for unit in prefer_one_node(available, (), 7)} == {"0"}
    assert {unit[0] for unit in prefer_one_node(available, (), 11)} == {"2"}


def test_what_must_be_included_decides_the_node() -> None:
    available = pool_ids(10, 10)
    chosen = prefer_one_node(available, ("1003",), 5)
    assert chosen[0] == "1003"
    assert {unit[0] for unit in chosen} == {"1"}


def test_a_large_request_takes_the_largest_nodes_first() -> None:
    chosen = prefer_one_node(pool_ids(5, 10, 3), (), 12)
    assert sorted(unit[0] for unit in chosen) == ["1"] * 10 + ["2"] * 2


def test_fewer_come_back_only_if_there_are_fewer() -> None:
    assert len(prefer_one_node(pool_ids(2, 2), (), 10)) == 4
    assert prefer_one_node((), (), 3) == ()
    assert prefer_one_node(pool_ids(3), (), -1) == ()
