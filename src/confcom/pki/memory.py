"""What was found out before about exact bytes, bounded: certificates that were read, signatures that were good."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class _Entry(msgspec.Struct, Generic[V]):
    value: V
    exact: bytes
    wrapping: bytes


class Memory(Generic[V]):
    """Values by what they are about; the least recently used goes first. Safe to use from several threads.

    `statement` is the digest of what was signed, without the signatures: ECDSA has two of each, so any client can make
    other bytes that verify and say the same. These replace one another, and a value is given out for its `exact`
    bytes (or their digest) alone. `wrapping` is the digest of the bytes as they came: one for each entry, the latest,
    so that the usual ones need not be decoded. So variants of one genuine document neither fill the memory nor push
    others out of it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry[V]] = OrderedDict()
        self._by_wrapping: dict[bytes, bytes] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, statement: bytes) -> bool:
        return statement in self._entries

    def get(self, statement: bytes, exact: bytes = b"", *, wrapping: bytes = b"") -> V | None:
        """What is known of these exact bytes; from now on also in this wrapping."""
        with self._lock:
            entry = self._entries.get(statement)
            if entry is None or entry.exact != exact:
                return None
            self._entries.move_to_end(statement)
            if wrapping and wrapping != entry.wrapping:
                self._by_wrapping.pop(entry.wrapping, None)
                entry.wrapping = wrapping
                self._by_wrapping[wrapping] = statement
            return entry.value

    def get_wrapped(self, wrapping: bytes) -> V | None:
        """What is known of the content in its latest wrapping."""
        with self._lock:
            statement = self._by_wrapping.get(wrapping)
            if statement is None:
                return None
            self._entries.move_to_end(statement)
            return self._entries[statement].value

    def add(self, statement: bytes, value: V, *, exact: bytes = b"", wrapping: bytes = b"") -> None:
        """Keep a value, in the place of what was known of the same statement."""
        with self._lock:
            if statement in self._entries:
                self._forget(statement)
            self._entries[statement] = _Entry(value, exact, wrapping)
            if wrapping:
                self._by_wrapping[wrapping] = statement
            while len(self._entries) > self._size:
                self._forget(next(iter(self._entries)))

    def _forget(self, statement: bytes) -> None:
        self._by_wrapping.pop(self._entries.pop(statement).wrapping, None)
