"""The line of /proc/PID/stat, as far as it is needed here; pure. proc_pid_stat(5)."""

from __future__ import annotations

from dataclasses import dataclass

_PARENT, _USER, _SYSTEM, _START = 1, 11, 12, 19
"""Places after the name: ppid, utime, stime, starttime."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """`ticks` is the processor time used and `started` the start after boot, both in clock ticks."""

    name: bytes
    parent: int
    ticks: int
    started: int


def parse_stat(line: bytes) -> ProcessStat | None:
    """None for what is no such line. The name may hold anything, brackets and blanks included."""
    head, bracket, rest = line.rpartition(b")")
    _, opening, name = head.partition(b"(")
    fields = rest.split()
    if not bracket or not opening or len(fields) <= _START:
        return None
    numbers = [fields[place] for place in (_PARENT, _USER, _SYSTEM, _START)]
    if not all(number.isdigit() and len(number) <= 20 for number in numbers):
        return None
    parent, user, system, started = map(int, numbers)
    return ProcessStat(name, parent, user + system, started)
