"""Allowances per address: so many of something in a minute, such as wrong tokens or questions to upstream.

A caller is the address that its connection comes from. Behind a proxy all clients are one address.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

WINDOW = 60.0
"""Seconds in which allowances are counted."""
MAX_ADDRESSES = 10_000
"""Addresses that are counted at a time; the one counted first makes room."""


def address_of(scope: Mapping[str, Any]) -> str:
    """The caller's address; of an IPv6 address its network of 64 bits, which one machine can fill alone."""
    return _network(scope["client"][0] if scope.get("client") else "")


@lru_cache(maxsize=1024)
def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Allowance:
    """So many of something per address in a window. `clock` gives seconds."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._spent: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def spend(self, address: str) -> int:
        """Count one and return 0; if none is left, count nothing and return the seconds until one is."""
        now, start, count = self._window(address)
        if count >= self._limit:
            return math.ceil(start + WINDOW - now)
        self._spent[address] = (start, count + 1)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)
        return 0

    def wait(self, address: str) -> int:
        """Seconds until the address may go on; 0 if it may now."""
        now, start, count = self._window(address)
        return math.ceil(start + WINDOW - now) if count >= self._limit else 0

    def _window(self, address: str) -> tuple[float, float, int]:
        """Now, when the address's window began, and what it has spent in it."""
        now = self._clock()
        start, count = self._spent.get(address, (now, 0))
        if 0 <= now - start < WINDOW:
            return now, start, count
        self._spent.pop(address, None)
        return now, now, 0
