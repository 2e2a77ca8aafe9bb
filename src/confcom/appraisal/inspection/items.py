"""What an inspection shows: named items with their bytes, place and meaning, as a tree."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeAlias, get_args, get_type_hints

from confcom.errors import ConfcomError
from confcom.formats.codec import Record, nested

Leaf: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was found: a value, or `children`. Bytes are hexadecimal text, times RFC 3339.

    `offset` and `size` are bytes in the input, where the item has a place there. `listed` children are members of a
    list; names in a list do not count. Text is as found: the printer must make it safe first.
    """

    name: str
    value: Leaf = None
    meaning: str = ""
    offset: int | None = None
    size: int | None = None
    children: tuple[Item, ...] | None = None
    listed: bool = False

    def as_json(self) -> Any:  # noqa: ANN401 - JSON is whatever was found
        """The value alone, for machines."""
        if self.children is None:
            return self.value
        if self.listed:
            return [child.as_json() for child in self.children]
        return {child.name: child.as_json() for child in self.children}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an input is. `encoding` says how its bytes were written; nothing of it is verified."""

    kind: str
    title: str
    encoding: str
    size: int
    items: tuple[Item, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `confcom inspect --json`."""
        return {
            "kind": self.kind,
            "verified": False,
            "encoding": self.encoding,
            "size": self.size,
            "fields": {item.name: item.as_json() for item in self.items},
        }


def group(name: str, items: Iterable[Item], meaning: str = "", *, offset: int | None = None, size: int = 0) -> Item:
    """Items under one name; with an offset, the place and size of the whole."""
    return Item(name, None, meaning, offset, size if offset is not None else None, tuple(items))


def listing(name: str, items: Iterable[Item], meaning: str = "") -> Item:
    """A list of items."""
    return Item(name, None, meaning, children=tuple(items), listed=True)


def words(name: str, values: Iterable[Leaf], meaning: str = "") -> Item:
    """A list of plain values."""
    return listing(name, (Item("", value) for value in values), meaning)


def bytes_item(name: str, data: bytes, meaning: str = "", *, offset: int | None = None) -> Item:
    """Bytes as hexadecimal digits."""
    return Item(name, data.hex(), meaning, offset, len(data))


def time_item(name: str, time: datetime, meaning: str = "") -> Item:
    """A time in UTC."""
    return Item(name, f"{time:%Y-%m-%dT%H:%M:%SZ}", meaning)


def attempt(name: str, make: Callable[[], Item]) -> Item:
    """The item, or one that says why it cannot be read: a damaged part does not hide the others."""
    try:
        return make()
    except ConfcomError as error:
        return group(name, [Item("unreadable", str(error))], "cannot be decoded")


Explain: TypeAlias = Mapping[str, str | Callable[[Any], str]]
Special: TypeAlias = Mapping[str, Callable[[Any, int], Item | tuple[Item, ...]]]


def record_items(
    record: Record, meanings: Explain, *, offset: int = 0, special: Special | None = None
) -> tuple[Item, ...]:
    """The fields of a fixed-size struct that begins at `offset`; reserved bytes only when they are not zero.

    `meanings` are texts, or functions of the value; `special` fields (nested structs, say) make their own items of
    value and offset. Numbers of 64 bits are hexadecimal, because readers of JSON round them.
    """
    items: list[Item] = []
    for name, start, size in _places(type(record), offset):
        value = getattr(record, name)
        if special and name in special:
            made = special[name](value, start)
            items += made if isinstance(made, tuple) else (made,)
        elif not name.startswith("reserved"):
            meaning = meanings.get(name, "")
            text = meaning if isinstance(meaning, str) else meaning(value)
            items.append(Item(name, _leaf(value, size), text, start, size))
        elif any(value):
            items.append(Item(name, value.hex(), "reserved, but not zero", start, size))
    return tuple(items)


def _leaf(value: bytes | int, size: int) -> Leaf:
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:016x}" if size == 8 else value


def _places(kind: type[Record], offset: int) -> Iterable[tuple[str, int, int]]:
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):  # type: ignore[arg-type]
        nested_kind, code = get_args(hints[item.name])[:2]
        size = nested_kind.size() if code == nested else struct.calcsize(f"<{code}")
        yield item.name, offset, size
        offset += size
