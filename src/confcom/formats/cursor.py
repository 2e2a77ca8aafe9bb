"""A bounded reader for layouts of variable length: every length is checked against what is there before it is used."""

from __future__ import annotations

from confcom.errors import FormatError


class Cursor:
    """Reads little-endian integers and byte strings from a buffer; any shortage is a `FormatError` with its offset."""

    __slots__ = ("data", "offset", "structure")

    def __init__(self, data: bytes, structure: str, offset: int = 0) -> None:
        self.data = data
        self.structure = structure
        self.offset = offset

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self.data) - self.offset

    def take(self, size: int, field: str) -> bytes:
        """Read exactly `size` bytes."""
        if size > self.remaining:
            raise self.error(f"needs {size} bytes, {self.remaining} are left", field)
        start = self.offset
        self.offset = start + size
        return self.data[start : self.offset]

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
        return self.take(self.remaining, "rest")

    def finish(self, field: str = "end") -> None:
        """Refuse bytes that no field accounts for."""
        if self.remaining:
            raise self.error(f"{self.remaining} bytes too many", field)

    def error(self, message: str, field: str, offset: int | None = None) -> FormatError:
        """Make the error for a field at the present (or the given) offset."""
        where = self.offset if offset is None else offset
        return FormatError(message, structure=self.structure, field=field, offset=where)
