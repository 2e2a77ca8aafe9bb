"""YAML from anybody: the values of Kubernetes' reader, or one sentence, in bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.formats.yaml_text import MAX_DEPTH, MAX_VALUES, read_yaml

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), TEXT, st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4))
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:59:59", "1:59:59"),  # a time of day, or a port mapping; PyYAML makes 7199 of it
        ("2020-01-01", "2020-01-01"),
        ("[y, N, yes, off]", [True, False, True, False]),
        ("[0o17, 017, 0x1F, 0b11, 1_000, +3, 09]", [15, 15, 31, 3, 1000, 3, 9.0]),
        ("[1e3, -.5, 1.5e+3]", [1000.0, -0.5, 1500.0]),
        ("{1: a, true: b, 1.5: c, '': d}", {"1": "a", "true": "b", "1.5": "c", "": "d"}),
        ("{a: &x {k: 1, l: 2}, b: {<<: *x, k: 3}}", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("[&a [1, 2], *a]", [[1, 2], [1, 2]]),
    ],
)
def test_values_are_those_of_kubernetes(text: str, value: Any) -> None:
    assert read_yaml(text, source="f") == [value]


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, r"line 8: aliases that repeat more than 10000 values"),
        (MERGES, r"aliases that repeat more than 10000 values"),
        ("- x\n" * (MAX_VALUES + 1), r"more than 200000 values"),
        ("---\n" * (MAX_VALUES + 1), r"more than 200000 values"),
        ("[" * 100_000, r"line 1: more than 100 lists and maps in one another"),
        ("- " * 100_000, r"more than 100 lists"),
        ("{a: " * 100_000, r"more than 100 lists"),
        ("&a [*a]", r"line 1: an alias of what it stands in"),
        ("&a {b: [*a]}", r"an alias of what it stands in"),
        ("a: 0x" + "f" * 1_000_000, r"line 1: a number of 1000002 signs"),
        ("a: " + "7" * 100_000, r"a number of 100000 signs"),
        ("a: 1." + "7" * 100_000, r"a number of 100002 signs"),
        ("a: 1\nb: 2\na: 3", r"line 3: the key 'a' stands here twice"),
        ("1: x\n'1': y", r"the key '1' stands here twice"),
        ("? [a]\n: b", r"a key that is no text"),
        ("a: !!python/object/apply:os.system [ls]", r"could not determine a constructor"),
        ("a: !!set {b, c}", r"could not determine a constructor"),
        ("a: !!binary AAAA", r"could not determine a constructor"),
        ("a: !!int x", r"line 1: no int"),
        ("a: !!float x", r"no float"),
        ("a: !!bool x", r"no bool"),
        ("a: *b", r"undefined alias"),
        ("a: \0", r"special characters are not allowed"),
    ],
)
def test_what_is_hostile_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read_yaml(text, source="f")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_what_lies_within_the_limits_is_read() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(read_yaml(deep, source="f")[0], separators=(",", ":")) == deep
    assert len(read_yaml("- x\n" * 10_000, source="f")[0]) == 10_000


@given(JSON)
@example({"a": 1.0e300, "=": None, "<": "<<"})
def test_json_in_yaml_is_read_as_it_was_written(value: Any) -> None:
    assert read_yaml(json.dumps(value), source="f") == [value]


@given(st.text(alphabet=st.sampled_from("[]{}:-,&*!|>'\"%@`#?.~ \n\tab01xe<_"), max_size=60))
def test_any_text_is_values_or_one_sentence(text: str) -> None:
    said = ""
    try:
        json.dumps(read_yaml(text, source="f"))
    except FormatError as error:
        said = error.message
    assert "\n" not in said
