"""Fixed-size little-endian C structs as frozen dataclasses: one line per field, the size computed from them.

A field is `Annotated[int, U16]`, `Annotated[bytes, raw(32)]` or `Annotated[Other, nested]` with another record.
Layouts of variable length are read by ordinary functions with a `Cursor`, which checks every length.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args, get_origin, get_type_hints

from confcom.errors import FormatError

U8 = "B"
U16 = "H"
U32 = "I"
U64 = "Q"
nested = "nested"


def raw(size: int) -> str:
    """A field of exactly `size` bytes, in memory order."""
    return f"{size}s"


class Record:
    """Base of the fixed-size structs; subclasses are `@dataclass(frozen=True, slots=True)`."""

    # The bytes a value was parsed from: for hashing and signature checks, and for the fields, when one is asked for.
    __slots__ = ("_raw",)

    @classmethod
    def size(cls) -> int:
        """Size of the struct in bytes."""
        return _layout(cls).struct.size

    @classmethod
    def place(cls, first: str, last: str = "") -> slice:
        """Where the fields from `first` to `last` stand, for readers that need few fields of many values."""
        layout = _layout(cls)
        sizes = [struct.calcsize(f"<{code}") for code in _CODES.findall(layout.struct.format)]
        start, end = layout.names.index(first), layout.names.index(last or first) + 1
        return slice(sum(sizes[:start]), sum(sizes[:end]))

    @classmethod
    def check_size(cls, data: bytes) -> None:
        """Raise what `parse` would; there is nothing else that it could mind."""
        if len(data) != cls.size():
            raise _wrong_size(cls, data)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the struct from exactly its size in bytes."""
        if len(data) != (_LAYOUTS.get(cls) or _layout(cls)).struct.size:
            raise _wrong_size(cls, data)
        value = cls.__new__(cls)
        object.__setattr__(value, "_raw", bytes(data))
        return value

    @classmethod
    def read(cls, cursor: Cursor, field: str) -> Self:
        """Read the struct where the cursor stands."""
        value = cls.__new__(cls)
        object.__setattr__(value, "_raw", cursor.take((_LAYOUTS.get(cls) or _layout(cls)).struct.size, field))
        return value

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the type of the field
            # A field of a parsed value that is read for the first time: unpack all of them.
            layout = _layout(type(self))
            if name not in layout.names:
                raise AttributeError(f"{type(self).__name__} has no {name}", name=name, obj=self)
            values: list[Any] = list(layout.struct.unpack(self._raw))
            for index, record in layout.records:
                values[index] = record.parse(values[index])
            for set_field, value in zip(layout.setters, values, strict=True):
                set_field(self, value)
            return getattr(self, name)

    def __bytes__(self) -> bytes:
        try:
            parsed: bytes = self._raw  # type: ignore[attr-defined]
        except AttributeError:
            return self._pack()
        return parsed

    def _pack(self) -> bytes:
        layout = _layout(type(self))
        values = [getattr(self, name) for name in layout.names]
        for index, _ in layout.records:
            values[index] = bytes(values[index])
        layout.check_sizes(type(self).__name__, values)
        try:
            packed = layout.struct.pack(*values)
        except struct.error as error:
            raise FormatError(str(error), structure=type(self).__name__, field="") from error
        return packed


def _wrong_size(record: type[Record], data: bytes) -> FormatError:
    return FormatError(f"is {record.size()} bytes, found {len(data)}", structure=record.__name__, field="", offset=0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a class body says, compiled once."""

    struct: struct.Struct
    names: tuple[str, ...]
    setters: tuple[Callable[[Any, Any], None], ...]
    records: tuple[tuple[int, type[Record]], ...]
    byte_sizes: tuple[tuple[int, int], ...]

    def check_sizes(self, structure: str, values: list[Any]) -> None:
        # struct pads and cuts byte strings silently; a wrong size is a mistake of the caller.
        for index, size in self.byte_sizes:
            value = values[index]
            found = len(value) if isinstance(value, bytes) else type(value).__name__
            if found != size:
                raise FormatError(f"is {size} bytes, found {found}", structure=structure, field=self.names[index])


def _layout(record: type[Record]) -> _Layout:
    known = _LAYOUTS.get(record)
    if known is None:
        known = _LAYOUTS[record] = _compile(record)
    return known


def _compile(record: type[Record]) -> _Layout:
    codes = ["<"]
    records: list[tuple[int, type[Record]]] = []
    byte_sizes: list[tuple[int, int]] = []
    layouts = _fields(record)
    for index, (kind, code) in enumerate(layouts.values()):
        if code == nested:
            records.append((index, kind))
            codes.append(f"{kind.size()}s")
        else:
            codes.append(code)
        if codes[-1].endswith("s"):
            byte_sizes.append((index, int(codes[-1][:-1])))
    # The slots' own: a frozen dataclass lets nothing else set a field.
    setters = tuple(getattr(record, name).__set__ for name in layouts)
    return _Layout(struct.Struct("".join(codes)), tuple(layouts), setters, tuple(records), tuple(byte_sizes))


def _fields(record: type[Record]) -> dict[str, tuple[Any, str]]:
    hints = get_type_hints(record, include_extras=True)
    found: dict[str, tuple[Any, str]] = {}
    for item in fields(record):  # type: ignore[arg-type]
        hint = hints[item.name]
        if get_origin(hint) is not Annotated:  # pragma: no cover - a mistake in a class body
            raise TypeError(f"{record.__name__}.{item.name} has no layout")
        kind, code = get_args(hint)[:2]
        found[item.name] = (kind, code)
    return found


# Compiled at first use: annotations of nested records are resolvable only then.
_LAYOUTS: dict[type[Record], _Layout] = {}


_CODES = re.compile(r"\d*[A-Za-z]")


class Cursor:
    """Reads little-endian integers and byte strings; any shortage is a `FormatError` with its offset."""

    __slots__ = ("data", "end", "offset", "structure")

    def __init__(self, data: bytes, structure: str, offset: int = 0, end: int | None = None) -> None:
        self.data = data
        self.structure = structure
        self.offset = offset
        self.end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return self.end - self.offset

    def take(self, size: int, field: str) -> bytes:
        """Read exactly `size` bytes."""
        start, end = self.offset, self.offset + size
        if end > self.end:
            raise self.error(f"needs {size} bytes, {self.remaining} are left", field)
        self.offset = end
        return self.data[start:end]

    def part(self, size: int, field: str) -> Cursor:
        """A cursor over the next `size` bytes alone; this one goes on behind them."""
        start = self.offset
        self.take(size, field)
        return Cursor(self.data, self.structure, start, self.offset)

    def unpack(self, layout: struct.Struct, *fields: str) -> tuple[Any, ...]:
        """Read fields that follow one another; a shortage names the first that is not whole."""
        start, end = self.offset, self.offset + layout.size
        if end > self.end:
            for code, field in zip(_CODES.findall(layout.format), fields, strict=True):
                self.take(struct.calcsize(f"<{code}"), field)
        self.offset = end
        return layout.unpack_from(self.data, start)

    def u16(self, field: str) -> int:
        """Read a little-endian unsigned 16-bit integer."""
        return int.from_bytes(self.take(2, field), "little")

    def u32(self, field: str) -> int:
        """Read a little-endian unsigned 32-bit integer."""
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        """Read a little-endian unsigned 64-bit integer."""
        return int.from_bytes(self.take(8, field), "little")

    def rest(self) -> bytes:
        """Read everything that is left."""
        start, self.offset = self.offset, self.end
        return self.data[start : self.end]

    def finish(self, field: str = "end") -> None:
        """Refuse bytes that no field accounts for."""
        if self.offset != self.end:
            raise self.error(f"{self.remaining} bytes too many", field)

    def error(self, message: str, field: str, offset: int | None = None) -> FormatError:
        """Make the error for a field at the present (or the given) offset."""
        where = self.offset if offset is None else offset
        return FormatError(message, structure=self.structure, field=field, offset=where)
