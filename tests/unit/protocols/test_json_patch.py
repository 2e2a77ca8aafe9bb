"""Patches name what differs, by pointers that lead there whatever the names are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.protocols.admission import difference
from json_patch_apply import apply_patch

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("a/~1-", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({}, {"sgx.intel.com/epc": "1"}, [{"op": "add", "path": "/sgx.intel.com~1epc", "value": "1"}]),
        ({"a~b/c": 1}, {}, [{"op": "remove", "path": "/a~0b~1c"}]),
        ({"a": None}, {"a": {}}, [{"op": "replace", "path": "/a", "value": {}}]),
        ({"a": [1]}, {"a": [1, 2]}, [{"op": "add", "path": "/a/-", "value": 2}]),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2]}, [{"op": "replace", "path": "/a/0/b", "value": 3}]),
        ({"a": [1, 2]}, {"a": [1]}, [{"op": "replace", "path": "/a", "value": [1]}]),
        ({"a": True}, {"a": 1}, [{"op": "replace", "path": "/a", "value": 1}]),
        (1, 2, [{"op": "replace", "path": "", "value": 2}]),
    ],
)  # fmt: skip
def test_a_patch_is_as_short_as_can_be(old: object, new: object, patch: list) -> None:
    assert difference(old, new) == patch


@given(JSON, JSON)
def test_applied_to_the_old_it_gives_the_new(old: object, new: object) -> None:
    assert repr(apply_patch(old, difference(old, new))) == repr(new) or apply_patch(old, difference(old, new)) == new


def test_what_is_shared_is_not_looked_at() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert difference({"a": deep, "b": 1}, {"a": deep, "b": 2}) == [{"op": "replace", "path": "/b", "value": 2}]
