"""JSON piece by piece: the pieces are those that a whole reader finds, whatever the text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.collateral.platform_collateral import JsonWalk
from confcom.errors import FormatError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def walk(data: bytes, limit: int = 1 << 20) -> JsonWalk:
    return JsonWalk(data, structure="thing", limit=limit)


def taken(data: bytes) -> dict[str, Any]:
    """An object as its members, the items of `list` one by one."""
    found: dict[str, Any] = {}
    reader = walk(data)
    for name in reader.members():
        if name == "list":
            found[name] = [json.loads(reader.piece(span)) for span in reader.items(name)]
        elif name == "inner":
            found[name] = {inner: json.loads(reader.piece(reader.value(inner))) for inner in reader.members(name)}
        elif not name.startswith("skipped"):
            found[name] = json.loads(reader.piece(reader.value(name)))
    reader.end()
    return found


@given(
    st.dictionaries(st.text(max_size=9).filter(lambda name: name not in ("list", "inner")), _VALUES, max_size=4),
    st.lists(_VALUES, max_size=4),
    st.dictionaries(st.text(max_size=9), _VALUES, max_size=4),
    st.sampled_from([None, 0, 3]),
)
def test_finds_what_a_whole_reader_finds(
    members: dict[str, Any], items: list[Any], inner: dict[str, Any], indent: int | None
) -> None:
    whole = {**members, "skipped": [inner], "list": items, "inner": inner}
    expected = {name: value for name, value in whole.items() if not name.startswith("skipped")}

    for ascii_only in (True, False):
        assert taken(json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode()) == expected


@given(st.text(alphabet='{}[]",:\\ \nab1\x00é', max_size=40))
def test_no_text_gets_out_as_anything_else_than_pieces_or_a_format_error(text: str) -> None:
    try:
        found = taken(text.encode())
    except (FormatError, json.JSONDecodeError):
        return
    # Strict about the structure that it follows, so that no two readers see another one.
    assert found == {name: value for name, value in json.loads(text).items() if not name.startswith("skipped")}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "expected {, found the end"),
        (b"[]", "expected {, found ["),
        (b'{"a":1', "expected ,, found the end"),
        (b'{"a":1} x', "more after the end"),
        (b'{"a":1,"a":2}', "thing.a at byte 10: is given twice"),
        (b'{"a":"', "thing.a at byte 5: does not end"),
        (b'{"a":[[[', "does not end"),
        (b'{"list":[1 2]}', "expected ,, found 2"),
        (b"{" + b'"' + b"a" * 300 + b'":1}', "something else than a member"),
        (b'{"\xff":1}', "name that is not JSON"),
        (b'{"a":"' + b"x" * 200 + b'"}', "a piece of more than 100 bytes"),
        (b'{"a":' + b"1" * 200 + b"}", "a piece of more than 100 bytes"),
        (b'{"a":[' + b"1," * 200 + b"1]}", "a piece of more than 100 bytes"),
        (b"{" + b" " * 101 + b"}", "white space of more than 100 bytes"),
        (b"{}" + b"\n" * 101, "white space of more than 100 bytes"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, named: str) -> None:
    def through() -> None:
        reader = walk(data, limit=100)
        for name in reader.members():
            if name == "list":
                list(reader.items(name))
        reader.end()

    with pytest.raises(FormatError, match=re.escape(named)):
        through()


def test_a_string_that_never_ends_is_looked_at_once() -> None:
    # Each escaped quote could be the beginning of another string: with as many tries as quotes, this would not end.
    data = b'{"a":["' + rb"\"" * 500_000
    with pytest.raises(FormatError, match="does not end"):
        list(walk(data, limit=2 << 20).members())
