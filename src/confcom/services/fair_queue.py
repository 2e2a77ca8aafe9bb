"""A bounded queue in which everybody's turn comes, however much one of them asks for."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of many owners: the owners take turns, and each one's items stay in their order.

    When it is full, one more item displaces the newest of whoever has most in it, so an owner that fills the queue
    pays for that itself.
    """

    def __init__(self) -> None:
        self._items: OrderedDict[str, deque[Item]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, owner: str, item: Item, *, limit: int = sys.maxsize) -> Item | None:
        """Add an item behind the owner's others; beyond `limit` items, gives the one that must leave: maybe this."""
        displaced: Item | None = None
        if self._size >= limit:
            longest = max(self._items, key=lambda key: len(self._items[key]), default=owner)
            if len(self._items.get(longest, ())) <= len(self._items.get(owner, ())) + 1:
                return item
            displaced = self._take(longest, deque.pop)
        self._append(owner, item)
        return displaced

    def pop(self) -> Item:
        """Take the next item; its owner goes behind all others."""
        owner = next(iter(self._items))
        item = self._take(owner, deque.popleft)
        if owner in self._items:
            self._items.move_to_end(owner)
        return item

    def remove_if(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out all items that the question says yes to."""
        removed: list[Item] = []
        for owner in list(self._items):
            kept = deque[Item]()
            for item in self._items[owner]:
                (removed if unwanted(item) else kept).append(item)
            if kept:
                self._items[owner] = kept
            else:
                del self._items[owner]
        self._size -= len(removed)
        return removed

    def _append(self, owner: str, item: Item) -> None:
        own = self._items.get(owner)
        if own is None:
            self._items[owner] = deque((item,))
        else:
            own.append(item)
        self._size += 1

    def _take(self, owner: str, end: Callable[[deque[Item]], Item]) -> Item:
        items = self._items[owner]
        item = end(items)
        if not items:
            del self._items[owner]
        self._size -= 1
        return item
