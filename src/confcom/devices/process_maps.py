"""Which address ranges of a process are enclaves, from the text of /proc/PID/maps; pure. proc_pid_maps(5).

A line names the file that is mapped by the device of its file system and its inode, and by the path that the process
itself sees. It does not say which device a device file stands for: whoever reads the process asks the kernel for that.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from confcom.devices.sgx_driver import ENCLAVE_PATHS, LEGACY_PATH

MAX_MAPS = 8 << 20
"""Bytes of one process's maps: the kernel's 65530 mappings with paths of usual length."""

Range: TypeAlias = tuple[int, int]
"""Start and end, the end not included."""
FileIdentity: TypeAlias = tuple[int, int, int]
"""Device of the file system (major, minor) and inode."""

DEVICE_PATHS = frozenset(path.encode() for path in (*ENCLAVE_PATHS, LEGACY_PATH))
_NAMES = tuple(f"/{path.split('/dev/')[1]}".encode() for path in (*ENCLAVE_PATHS, LEGACY_PATH))
_DELETED = b" (deleted)"
_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) [0-9a-f]{1,16} ([0-9a-f]{1,8}):([0-9a-f]{1,8}) "
    rb"([0-9]{1,20}) *(.*)"
)
_IMAGE = re.compile(rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) [^\n]*\[(stack|vdso)\]$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FileMapping:
    """One mapping of a file. `usable` means that it may be read, written or executed; others only hold addresses."""

    start: int
    end: int
    usable: bool
    file: FileIdentity
    path: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def parse_mapping(line: bytes) -> FileMapping | None:
    """One line; None for what is none, or maps no file."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    start, end, inode = int(match[1], 16), int(match[2], 16), int(match[6])
    if start >= end or not inode:
        return None
    identity = (int(match[4], 16), int(match[5], 16), inode)
    return FileMapping(start, end, match[3][:3] != b"---", identity, match[7].removesuffix(_DELETED))


def bears_a_device_name(path: bytes) -> bool:
    """Whether a path ends as those of the enclave device do, wherever it is mounted."""
    return path.endswith(_NAMES)


def enclave_candidates(maps: bytes, known: Collection[FileIdentity]) -> Iterator[FileMapping]:
    """Mappings of a file that is known, or that is called like the enclave device."""
    # Nearly all processes have none, and this finds that out in some microseconds.
    marks = [b" %02x:%02x %d " % identity for identity in known]
    if b"sgx" not in maps and not any(mark in maps for mark in marks):
        return
    for line in maps.split(b"\n"):
        if b"sgx" in line or any(mark in line for mark in marks):
            mapping = parse_mapping(line)
            if mapping is not None and (mapping.file in known or bears_a_device_name(mapping.path)):
                yield mapping


def program_image(maps: bytes) -> tuple[int, ...]:
    """Where the kernel put stack and vDSO when the program was started: random places, the same after fork alone.

    Of the stack the end counts, because it grows downwards. Empty where neither is shown.
    """
    found = {match[3]: int(match[2 if match[3] == b"stack" else 1], 16) for match in _IMAGE.finditer(maps)}
    return tuple(found[name] for name in (b"stack", b"vdso") if name in found)


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same addresses, each once, in order."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return tuple(merged)


def subtract(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """The addresses of `ranges` that are in none of `others`."""
    left: list[Range] = []
    taken = merge(others)
    ends = [high for _, high in taken]
    for start, end in merge(ranges):
        for low, high in taken[bisect_right(ends, start) :]:
            if end <= low:
                break
            if start < low:
                left.append((start, low))
            start = high
        if start < end:
            left.append((start, end))
    return tuple(left)


def size(ranges: Iterable[Range]) -> int:
    """Bytes in all; the ranges must not overlap."""
    return sum(end - start for start, end in ranges)
