"""Fixed-size little-endian C structs as frozen dataclasses: one line per field, the size computed from them.

A field is `Annotated[int, U16]`, `Annotated[bytes, raw(32)]` or `Annotated[Other, nested]` with another record.
There is nothing for variable lengths or conditions here; those are ordinary functions with a `Cursor`.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Self, TypeAlias, get_args, get_origin, get_type_hints

from confcom.errors import FormatError

U8 = "B"
U16 = "H"
U32 = "I"
U64 = "Q"
nested = "nested"

RecordClass: TypeAlias = Any  # type[Record], which mypy takes for unhashable


def raw(size: int) -> str:
    """A field of exactly `size` bytes, in memory order."""
    return f"{size}s"


class Record:
    """Base of the fixed-size structs; subclasses are `@dataclass(frozen=True, slots=True)`."""

    # The bytes a value was parsed from, so that hashing and signature checks need not pack it again.
    __slots__ = ("_raw",)

    @classmethod
    def size(cls) -> int:
        """Size of the struct in bytes."""
        return _layout(cls)[0].size

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the struct from exactly its size in bytes."""
        layout, records = _layout(cls)
        if len(data) != layout.size:
            raise FormatError(f"is {layout.size} bytes, found {len(data)}", structure=cls.__name__, field="", offset=0)
        values: list[Any] = list(layout.unpack(data))
        for index, record in records:
            values[index] = record.parse(values[index])
        value = cls(*values)
        object.__setattr__(value, "_raw", bytes(data))
        return value

    def __bytes__(self) -> bytes:
        try:
            parsed: bytes = self._raw  # type: ignore[attr-defined]
        except AttributeError:
            return self._pack()
        return parsed

    def _pack(self) -> bytes:
        layout, records = _layout(type(self))
        values = [getattr(self, item.name) for item in fields(self)]  # type: ignore[arg-type]
        for index, _ in records:
            values[index] = bytes(values[index])
        for item, value in zip(fields(self), values, strict=True):  # type: ignore[arg-type]
            _check(type(self), item.name, value)
        try:
            packed = layout.pack(*values)
        except struct.error as error:
            raise FormatError(str(error), structure=type(self).__name__, field="") from error
        return packed


def _check(record: type[Record], name: str, value: object) -> None:
    # struct pads and cuts byte strings silently; a wrong size is a mistake of the caller.
    wanted = _byte_sizes(record).get(name)
    if wanted is not None and (not isinstance(value, bytes) or len(value) != wanted):
        found = len(value) if isinstance(value, bytes) else type(value).__name__
        raise FormatError(f"is {wanted} bytes, found {found}", structure=record.__name__, field=name)


@cache
def _layout(record: RecordClass) -> tuple[struct.Struct, tuple[tuple[int, type[Record]], ...]]:
    codes = ["<"]
    records: list[tuple[int, type[Record]]] = []
    for index, (kind, code) in enumerate(_fields(record).values()):
        if code == nested:
            records.append((index, kind))
            codes.append(f"{kind.size()}s")
        else:
            codes.append(code)
    return struct.Struct("".join(codes)), tuple(records)


@cache
def _byte_sizes(record: RecordClass) -> dict[str, int]:
    layouts = _fields(record)
    return {name: int(code[:-1]) for name, (_, code) in layouts.items() if code.endswith("s")}


@cache
def _fields(record: RecordClass) -> dict[str, tuple[Any, str]]:
    hints = get_type_hints(record, include_extras=True)
    found: dict[str, tuple[Any, str]] = {}
    for item in fields(record):  # type: ignore[arg-type]
        hint = hints[item.name]
        if get_origin(hint) is not Annotated:  # pragma: no cover - a mistake in a class body
            raise TypeError(f"{record.__name__}.{item.name} has no layout")
        kind, code = get_args(hint)[:2]
        found[item.name] = (kind, code)
    return found
