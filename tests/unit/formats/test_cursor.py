"""The bounded reader: nothing is read that is not there, and errors say where."""

from __future__ import annotations

import struct

import pytest

from confcom.errors import FormatError
from confcom.formats.codec import Cursor


def test_integers_are_little_endian_and_in_order() -> None:
    cursor = Cursor(bytes.fromhex("0100" + "02000000" + "0300000000000000" + "aabb"), "Thing")
    assert (cursor.u16("a"), cursor.u32("b"), cursor.u64("c")) == (1, 2, 3)
    assert (cursor.offset, cursor.remaining) == (14, 2)
    assert cursor.rest() == b"\xaa\xbb"
    cursor.finish()


@pytest.mark.parametrize(
    ("read", "size"), [(Cursor.u16, 2), (Cursor.u32, 4), (Cursor.u64, 8), (lambda c, f: c.take(1 << 63, f), 1 << 63)]
)
def test_a_shortage_names_structure_field_and_offset_and_reads_nothing(read, size: int) -> None:
    cursor = Cursor(b"xxxxx!", "Thing", 5)
    with pytest.raises(FormatError, match=f"needs {size} bytes, 1 are left") as caught:
        read(cursor, "length")
    assert (caught.value.structure, caught.value.field, caught.value.offset) == ("Thing", "length", 5)
    assert cursor.take(1, "byte") == b"!"


@pytest.mark.parametrize(("size", "field", "needs", "left"), [(0, "a", 2, 0), (5, "b", 4, 3), (9, "c", 4, 3)])
def test_fields_that_follow_one_another_are_read_at_once(size: int, field: str, needs: int, left: int) -> None:
    layout = struct.Struct("<HI4s")
    assert Cursor(b"x" + bytes.fromhex("0100 02000000 61626364"), "Thing", 1).unpack(layout, *"abc") == (1, 2, b"abcd")
    with pytest.raises(FormatError, match=f"needs {needs} bytes, {left} are left") as caught:
        Cursor(bytes(1 + size), "Thing", 1).unpack(layout, *"abc")
    assert (caught.value.field, caught.value.offset) == (field, 1 + size - left)


def test_bytes_that_no_field_accounts_for_are_refused() -> None:
    cursor = Cursor(b"abc", "Thing")
    cursor.take(1, "a")
    with pytest.raises(FormatError, match="2 bytes too many") as caught:
        cursor.finish()
    assert caught.value.offset == 1


def test_nothing_is_left_to_take_but_nothing() -> None:
    cursor = Cursor(b"", "Thing")
    assert cursor.take(0, "nothing") == b""
    assert cursor.rest() == b""
    cursor.finish()


def test_an_error_can_point_back() -> None:
    cursor = Cursor(bytes(10), "Thing", 8)
    assert cursor.error("wrong", "field").offset == 8
    assert cursor.error("wrong", "field", 0).offset == 0
