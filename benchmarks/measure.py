"""Rates and percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable


def rate(call: Callable[[], object], *, seconds: float = 1.0, rounds: int = 3) -> float:
    """Calls per second of one thread: the best of some rounds, because noise only ever slows."""
    call()
    best = 0.0
    for _ in range(rounds):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            for _ in range(8):
                call()
            count += 8
        best = max(best, count / elapsed)
    return best


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(name: str, figure: float, *, unit: str = "/s", beside: str = "") -> str:
    """One line of a table."""
    return f"  {name:<58} {figure:>10,.0f} {unit:<4} {beside}"
