"""Allowances per address: so many of something in a minute, such as wrong tokens or questions to upstream.

A caller is the address that its connection comes from. Behind a proxy all clients are one address, unless the proxy is
trusted to name them (`forwarded`).
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from confcom.errors import ConfigError

WINDOW = 60.0
"""Seconds in which allowances are counted."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_ADDRESSES = 10_000
"""Addresses that are counted at a time; the one counted first makes room."""


def address_of(scope: Mapping[str, Any]) -> str:
    """The caller's address; of an IPv6 address its network of 64 bits, which one machine can fill alone."""
    return _network(scope["client"][0] if scope.get("client") else "")


def parse_networks(texts: Iterable[str], setting: str) -> tuple[Network, ...]:
    """Addresses and networks (10.0.0.0/8, fd00::/8); anything else is a `ConfigError` with the setting's name."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}", advice="Write networks as 10.0.0.0/8, without host bits.") from None


def forwarded(scope: Mapping[str, Any], proxies: Sequence[Network]) -> Mapping[str, Any]:
    """The scope of a request with the client that trusted proxies name in X-Forwarded-For.

    Each proxy appends the address that it saw. So the caller is the last one that is not a proxy's; what stands before
    it is the caller's own claim.
    """
    caller = scope["client"][0] if scope.get("client") else ""
    named = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
    for each in reversed(named.split(",")):
        address = _address(caller)
        if address is None or not any(address in network for network in proxies):
            break
        # Some proxies append the port.
        texts = (each.strip(), each.strip().strip("[]"), each.rpartition(":")[0].strip().strip("[]"))
        found = next((found for text in texts if (found := _address(text)) is not None), None)
        if found is None:
            break
        caller = str(found)
    return {**scope, "client": (caller, 0)}


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None


@lru_cache(maxsize=1024)
def _network(host: str) -> str:
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host if address is None else str(address)


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
