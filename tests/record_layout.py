"""Checks a fixed-size struct against a table of its documented fields, byte by byte and in both directions."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from confcom.formats.codec import Record


def distinct(size: int, start: int = 1) -> bytes:
    """Bytes that are neither zero nor equal to their neighbours."""
    return bytes((start + index) % 255 + 1 for index in range(size))


def check_field(kind: type[Record], path: str, offset: int, size: int) -> None:
    """The field of that path (`a.b` goes into a nested struct) lies at `offset` and nowhere else."""
    mark = distinct(size, offset)
    data = bytearray(kind.size())
    data[offset : offset + size] = mark
    found: Any = kind.parse(bytes(data))
    for name in path.split("."):
        found = getattr(found, name)
    assert (found.to_bytes(size, "little") if isinstance(found, int) else bytes(found)) == mark
    assert bytes(_with(kind.parse(bytes(kind.size())), path.split("."), found)) == data


def check_complete(kind: type[Record], rows: list[tuple[str, int, int]]) -> None:
    """The table leaves no gap, and names every field of the class."""
    end = 0
    for path, offset, size in rows:
        assert offset == end, path
        end += size
    assert kind.size() == end
    assert [item.name for item in fields(kind)] == list(dict.fromkeys(path.split(".")[0] for path, _, _ in rows))  # type: ignore[arg-type]


def _with(value: Any, path: list[str], found: Any) -> Any:
    if len(path) > 1:
        found = _with(getattr(value, path[0]), path[1:], found)
    return replace(value, **{path[0]: found})
