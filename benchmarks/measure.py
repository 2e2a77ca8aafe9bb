"""Rates, percentiles, how a cost grows with its size, and the rows in which benchmarks report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import linear_regression

MEASURED = 0.02
"""Seconds that one measurement of `growth` takes at least: short calls are repeated."""
CACHES = 0.1
"""What an exponent may be above that of n log n: memory itself gets slower with the size."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure and, measured in the same run, that of a peer or a limit.

    `peer` names the peer, or the limit, in a few words; a figure that only a bar stands against (0 failed requests) has
    the bar in `note`.
    """

    name: str
    figure: float
    unit: str = "/s"
    beside: float | None = None
    peer: str = ""
    note: str = ""

    @property
    def ratio(self) -> str:
        """Ours divided by the other, or nothing where that says nothing."""
        return f"{self.figure / self.beside:.2f}" if self.figure and self.beside else ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """What, ours, beside, ratio, and the rest, as text."""
        other = "" if self.beside is None else f"{number(self.beside)} {self.unit}".strip() + f" ({self.peer})"
        return self.name, f"{number(self.figure)} {self.unit}".strip(), other, self.ratio, self.note

    def __str__(self) -> str:
        name, ours, other, ratio, note = self.cells()
        rest = [other, f"ratio {ratio}" if ratio else "", note]
        return f"  {name:<58} {ours:>16}  {'; '.join(part for part in rest if part)}".rstrip()


def number(value: float) -> str:
    """Whole above 100, else three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def show(rows: Iterable[Row]) -> None:
    """Print rows as they come."""
    for row in rows:
        print(row, flush=True)


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


def cpu_seconds(call: Callable[[], object], *, calls: int = 40, rounds: int = 10) -> float:
    """Seconds of this process's CPU for one call: the best of some rounds, whatever else the machine does."""
    call()
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - start) / calls)
    return best


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(seconds: list[float], *, unit: str = "ms") -> str:
    """Median, 99th percentile and worst of durations, as a note."""
    factor = {"µs": 1e6, "ms": 1e3, "s": 1.0}[unit]
    p50, p99, worst = (percentile(seconds, share) * factor for share in (0.5, 0.99, 1))
    return f"p50 {number(p50)}, p99 {number(p99)}, worst {number(worst)} {unit}"


@dataclass(frozen=True, slots=True)
class Growth:
    """What one operation costs at each size (seconds, or any other unit), sizes ascending."""

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of the least-squares line through (log size, log cost): 1 is linear, 2 quadratic."""
        return _slope(self.sizes, self.costs)

    @property
    def limit(self) -> float:
        """The exponent of n log n over the same sizes, 1.1 to 1.2 from a hundred on."""
        return _slope(self.sizes, [size * math.log2(size + 1) for size in self.sizes])

    @property
    def acceptable(self) -> bool:
        """Whether the cost grows no faster than n log n."""
        return self.exponent <= self.limit + CACHES

    def row(self, name: str) -> Row:
        """The exponent beside that of n log n, with the costs as milliseconds."""
        costs = ", ".join(
            f"{size:,}: {number(cost * 1e3)} ms" for size, cost in zip(self.sizes, self.costs, strict=True)
        )
        verdict = "" if self.acceptable else "; WORSE THAN n log n"
        return Row(name, self.exponent, "", self.limit, "n log n", costs + verdict)


def growth(
    prepare: Callable[[int], Callable[[], object]],
    sizes: Sequence[int],
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Growth:
    """Seconds of one call at each size, the best of some rounds; the sizes take turns, so that noise meets all alike.

    `prepare(size)` makes what the call needs, outside the measurement, and returns the call. Measure at least three
    sizes, each ten times the one before, and start where the size matters more than what every call costs anyway.
    `clock` may be `time.process_time` where only the work of this process counts.
    """
    calls = [prepare(size) for size in sizes]
    repeats = [max(1, math.ceil(MEASURED / max(_seconds(call, 1, clock), 1e-6))) for call in calls]
    taken = [[_seconds(call, count, clock) for call, count in zip(calls, repeats, strict=True)] for _ in range(rounds)]
    return Growth(tuple(sizes), tuple(min(costs) for costs in zip(*taken, strict=True)))


def _seconds(call: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def _slope(sizes: Sequence[int], costs: Sequence[float]) -> float:
    return linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope
