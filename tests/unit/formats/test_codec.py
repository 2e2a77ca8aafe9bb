"""Fixed-size structs: sizes, byte order, nesting, and refusal of what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import pytest

from confcom.errors import FormatError
from confcom.formats.codec import U8, U16, U32, U64, Record, nested, raw


@dataclass(frozen=True, slots=True)
class Inner(Record):
    number: Annotated[int, U16]
    text: Annotated[bytes, raw(3)]


@dataclass(frozen=True, slots=True)
class Outer(Record):
    first: Annotated[int, U8]
    inner: Annotated[Inner, nested]
    wide: Annotated[int, U32]
    widest: Annotated[int, U64]


ENCODED = bytes.fromhex("01" + "0302" + "616263" + "07060504" + "0f0e0d0c0b0a0908")
VALUE = Outer(1, Inner(0x0203, b"abc"), 0x04050607, 0x08090A0B0C0D0E0F)


def test_structs_are_packed_and_little_endian() -> None:
    assert Outer.size() == 1 + 5 + 4 + 8
    assert bytes(VALUE) == ENCODED
    assert Outer.parse(ENCODED) == VALUE


def test_parsed_and_built_values_are_the_same_value() -> None:
    assert hash(Outer.parse(ENCODED)) == hash(VALUE)
    assert bytes(Outer.parse(ENCODED)) == ENCODED


def test_a_changed_copy_of_a_parsed_value_has_changed_bytes() -> None:
    changed = replace(Outer.parse(ENCODED), first=9)
    assert bytes(changed) == b"\x09" + ENCODED[1:]


def test_later_changes_of_a_buffer_do_not_reach_a_value_parsed_from_it() -> None:
    buffer = bytearray(ENCODED)
    value = Outer.parse(buffer)
    buffer[0] = 0xEE
    assert bytes(value) == ENCODED


@pytest.mark.parametrize("size", [0, 1, 17, 19, 100])
def test_only_the_exact_size_is_read(size: int) -> None:
    with pytest.raises(FormatError, match=f"is 18 bytes, found {size}") as caught:
        Outer.parse(bytes(size))
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("Outer", "", 0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(VALUE, inner=Inner(1, b"four")), "text"),
        (replace(VALUE, inner=Inner(1, b"")), "text"),
        (replace(VALUE, inner=Inner(1, "abc")), "text"),
        (replace(VALUE, inner=Inner(1 << 16, b"abc")), ""),
        (replace(VALUE, inner=Inner(-1, b"abc")), ""),
    ],
)
def test_values_that_do_not_fit_their_field_are_refused_not_cut(wrong: Outer, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        bytes(wrong)
    assert (caught.value.structure, caught.value.field) == ("Inner", field)


def test_values_cannot_change() -> None:
    with pytest.raises(AttributeError):
        VALUE.first = 2
