"""JSON of any size, piece by piece: where the members of objects and the items of arrays begin and end.

The text stays where it is (a file mapped into memory), and no piece beyond a limit is looked at. Only the structure is
followed: whether a piece is JSON is found when it is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import mmap

import msgspec

from confcom.errors import FormatError

MAX_NAME = 256
"""Bytes of a member's name, with its quotes."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
# A string, a bracket, or the quote of a string that does not end.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)

Span = tuple[int, int]
"""Where a piece begins, and where it ends."""


class JsonWalk:
    """Goes through the text of one JSON value, forwards; linear in its size.

    `structure` names the text in errors. No piece that is taken whole may have more than `limit` bytes.
    """

    def __init__(self, data: bytes | mmap, *, structure: str, limit: int) -> None:
        self._data = data
        self._structure = structure
        self._limit = limit
        self._at = 0

    def members(self, field: str = "") -> Iterator[str]:
        """The names in the object that begins here; a name that comes twice is refused.

        At each name the walk is at its value, for the caller to go through; else the value is passed over.
        """
        names: set[str] = set()
        self._take(b"{", field)
        if self._peek() == b"}":
            self._at += 1
            return
        while True:
            name = self._name(field)
            if name in names:
                raise self._error("is given twice", name)
            names.add(name)
            self._take(b":", name)
            begin = self._skip_space()
            yield name
            if self._at == begin:
                self.value(name)
            if not self._more(b"}", field):
                return

    def items(self, field: str) -> Iterator[Span]:
        """The items of the array that begins here, each taken whole."""
        self._take(b"[", field)
        if self._peek() == b"]":
            self._at += 1
            return
        while True:
            yield self.value(field)
            if not self._more(b"]", field):
                return

    def value(self, field: str) -> Span:
        """The value that begins here, whole."""
        begin = self._skip_space()
        data, stop = self._data, begin + self._limit
        first = self._peek()
        if first not in (b"{", b"["):
            found = (_STRING if first == b'"' else _SCALAR).match(data, begin, stop)
            if found is None or (found.end() == stop and first != b'"'):
                raise self._unended(begin, field)
            self._at = found.end()
            return begin, self._at
        depth = 0
        for token in _STRUCTURE.finditer(data, begin, stop):
            mark = token.group() if token.end() - token.start() == 1 else b""
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(mark, 0)
            if depth == 0:
                self._at = token.end()
                return begin, self._at
            if mark == b'"':
                break
        raise self._unended(begin, field)

    def end(self) -> None:
        """Refuse text after the value."""
        if self._skip_space() != len(self._data):
            raise self._error("there is more after the end", "")

    def piece(self, span: Span) -> bytes:
        """The text of a piece."""
        return self._data[span[0] : span[1]]

    def _name(self, field: str) -> str:
        begin = self._skip_space()
        found = _STRING.match(self._data, begin, begin + MAX_NAME)
        if found is None:
            raise self._error("has something else than a member", field)
        self._at = found.end()
        try:
            return msgspec.json.decode(found.group(), type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._error(f"has a name that is not JSON: {error}", field) from error

    def _more(self, closing: bytes, field: str) -> bool:
        if self._peek() == closing:
            self._at += 1
            return False
        self._take(b",", field)
        return True

    def _peek(self) -> bytes:
        begin = self._skip_space()
        return self._data[begin : begin + 1]

    def _take(self, mark: bytes, field: str) -> None:
        found = self._peek()
        if found != mark:
            raise self._error(f"expected {mark.decode()}, found {found.decode('latin-1') or 'the end'}", field)
        self._at += 1

    def _skip_space(self) -> int:
        begin = self._at
        # The pattern matches everywhere, if only nothing.
        self._at = _SPACE.match(self._data, begin, begin + self._limit).end()  # type: ignore[union-attr]
        if self._at == begin + self._limit:
            raise self._error(f"has white space of more than {self._limit} bytes", "", begin)
        return self._at

    def _unended(self, begin: int, field: str) -> FormatError:
        if begin + self._limit < len(self._data):
            return self._error(f"has a piece of more than {self._limit} bytes", field, begin)
        return self._error("does not end", field, begin)

    def _error(self, message: str, field: str, at: int | None = None) -> FormatError:
        return FormatError(message, structure=self._structure, field=field, offset=self._at if at is None else at)
