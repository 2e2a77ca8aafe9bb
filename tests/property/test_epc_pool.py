"""What holds for every node and every request."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from confcom.devices.sgx_node import MIB, EpcSection, plan_pool, prefer_one_node
from confcom.errors import FormatError
from confcom.protocols.epc import NodeStatus, parse_quantity
from confcom.services.device_plugin.epc_in_api import EpcAmount

nodes = st.one_of(st.none(), st.integers(0, 80))
found_epc = st.lists(st.builds(EpcSection, nodes, st.integers(0, 300 * MIB)), max_size=6)


@given(found_epc, st.integers(0, 1000), st.sampled_from([1.0, 1.1, 1.5, 2.0, 3.7]))
def test_no_unit_is_counted_twice_and_none_is_made_up(found: list[EpcSection], reserve: int, ratio: float) -> None:
    pool = plan_pool(found, reserve_mib=reserve, overcommit=ratio)
    ids = [unit for section in pool.sections for unit in section.ids]
    assert len(ids) == len(set(ids)) == pool.units
    assert pool.true_mib * MIB <= sum(section.size for section in found)
    assert pool.units <= max(0, pool.true_mib - reserve) * ratio + 1e-9
    if ratio == 1.0:
        assert pool.units == max(0, pool.true_mib - reserve)


@given(found_epc)
def test_the_order_of_sections_does_not_change_the_ids(found: list[EpcSection]) -> None:
    def ids(sections: list[EpcSection]) -> set[str]:
        return {unit for section in plan_pool(sections).sections for unit in section.ids}

    assert ids(found) == ids(found[::-1])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 120), st.data())
def test_a_preference_is_a_choice_of_what_is_there(sizes: list[int], wanted: int, data: st.DataObject) -> None:
    pool = plan_pool([EpcSection(number, size * MIB) for number, size in enumerate(sizes)])
    every = [unit for section in pool.sections for unit in section.ids]
    available = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    must = data.draw(st.lists(st.sampled_from(available), unique=True, max_size=3)) if available else []
    chosen = prefer_one_node(available, must, wanted)
    assert len(chosen) == len(set(chosen))
    assert set(must) <= set(chosen) <= set(available)
    assert len(chosen) == max(len(must), min(wanted, len(available)))
    # One node is enough whenever one node has enough.
    room = {unit[0]: sum(other[0] == unit[0] for other in available) for unit in available}
    places = {unit[0] for unit in must}
    if wanted and not must and any(count >= wanted for count in room.values()):
        assert len({unit[0] for unit in chosen}) == 1
    if len(places) == 1 and room[next(iter(places))] >= wanted:
        assert {unit[0] for unit in chosen} == places


@given(st.integers(0, 10**12), st.sampled_from(["", "000m"]))
def test_an_amount_that_stands_in_the_status_needs_no_patch(units: int, form: str) -> None:
    amount = EpcAmount("example.com/epc", units, units)
    text = f"{units}{form}"
    status = NodeStatus({"example.com/epc": text}, {"example.com/epc": text}, amount.labels)
    assert amount.patch_for(status) is None
    patch = EpcAmount("example.com/epc", units + 1, units).patch_for(status)
    assert patch == {"status": {part: {"example.com/epc": str(units + 1)} for part in ("capacity", "allocatable")}}


@given(st.text(max_size=60))
def test_any_text_is_a_quantity_or_a_format_error(text: str) -> None:
    try:
        parse_quantity(text)
    except FormatError:
        return
