"""Finds the processes of a host that have enclave memory mapped: one pass over /proc.

Most processes have none, so each costs one read of its maps and a search. A candidate is then read again through a
handle on its /proc folder, which stays with that process whatever becomes of its number.

A mapped file is the enclave device if it has that device's number. The kernel tells so through /proc/PID/map_files
(CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN) or /proc/PID/root (CAP_SYS_PTRACE, which reading maps needs as well). On a
simulated node the device is an ordinary file, and what counts is that very file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confcom.devices.enclave_use import EnclaveProcess
from confcom.devices.host import Host
from confcom.devices.process_cgroup import MAX_CGROUP, parse_cgroup
from confcom.devices.process_maps import (
    DEVICE_PATHS,
    MAX_MAPS,
    FileIdentity,
    FileMapping,
    Range,
    enclave_candidates,
    merge,
    program_image,
)
from confcom.devices.process_stat import parse_stat

_MAX_STAT = 4096
_PIECE = 64 * 1024
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class EnclaveDevice:
    """What tells the enclave device: its numbers, and the files that are known to be it without asking the kernel."""

    numbers: frozenset[tuple[int, int]]
    files: frozenset[FileIdentity]
    stand_in: bool = False

    @classmethod
    def of(cls, host: Host) -> EnclaveDevice:
        """The enclave devices of every driver that `host` has."""
        numbers, files = set(), set()
        for path in sorted(DEVICE_PATHS):
            found, status = host.device(path.decode()), host.status(path.decode())
            if found is None or status is None:
                continue
            files.add(_identity(status))
            if found.number is not None:
                numbers.add(found.number)
        return cls(frozenset(numbers), frozenset(files), host.stand_ins)


@dataclass(frozen=True, slots=True)
class ProcessesSeen:
    """One pass. `unreadable` counts processes whose maps were refused to us: their use is not known."""

    enclaves: tuple[EnclaveProcess, ...]
    processes: int
    unreadable: int


class _Pass:
    """The counters of a pass, and which files were found to be the device."""

    def __init__(self, proc: int, device: EnclaveDevice) -> None:
        self.proc = proc
        self.device = device
        self.unreadable = 0
        self._devices: dict[FileIdentity, bool] = {}

    def enclaves(self, name: str) -> EnclaveProcess | None:
        """The enclave memory of a process; None if it has none, or is gone."""
        try:
            if not any(True for _ in enclave_candidates(_read(f"{name}/maps", self.proc, MAX_MAPS), self.device.files)):
                return None
            with _folder(name, self.proc) as process:
                return self._look(int(name), process)
        except PermissionError:
            self.unreadable += 1
        except OSError:
            pass  # it ended meanwhile
        return None

    def _look(self, pid: int, process: int) -> EnclaveProcess | None:
        maps = _read("maps", process, MAX_MAPS)
        usable: list[Range] = []
        reserved: list[Range] = []
        for mapping in enclave_candidates(maps, self.device.files):
            if self._is_device(mapping, process):
                (usable if mapping.usable else reserved).append((mapping.start, mapping.end))
        line = parse_stat(_read("stat", process, _MAX_STAT))
        if line is None or not (usable or reserved):
            return None
        owner = parse_cgroup(_read("cgroup", process, MAX_CGROUP))
        return EnclaveProcess(pid, line.parent, owner, program_image(maps), merge(usable), merge(reserved))

    def _is_device(self, mapping: FileMapping, process: int) -> bool:
        if mapping.file in self.device.files:
            return True
        known = self._devices.get(mapping.file)
        if known is None:
            known = self._devices[mapping.file] = self._ask(mapping, process)
        return known

    def _ask(self, mapping: FileMapping, process: int) -> bool:
        try:
            return self._matches(os.stat(f"map_files/{mapping.start:x}-{mapping.end:x}", dir_fd=process))
        except OSError:
            pass
        try:
            # The path as the process sees it; it may have been moved since, so the inode must agree.
            status = os.stat(b"root" + mapping.path, dir_fd=process)
            return status.st_ino == mapping.file[2] and self._matches(status)
        except (OSError, ValueError):
            return not self.device.stand_in and mapping.path in DEVICE_PATHS

    def _matches(self, status: os.stat_result) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return (os.major(status.st_rdev), os.minor(status.st_rdev)) in self.device.numbers
        return self.device.stand_in and _identity(status) in self.device.files


def find_enclave_processes(host: Host, device: EnclaveDevice) -> ProcessesSeen:
    """One pass over `host`'s /proc. Without a device there is nothing to look for, and nothing is read."""
    if not device.files:
        return ProcessesSeen((), 0, 0)
    try:
        with _folder(str(host.root / "proc")) as proc:
            names = [name for name in os.listdir(proc) if name.isdigit() and len(name) <= _MAX_DIGITS]  # noqa: PTH208 - by handle
            look = _Pass(proc, device)
            found = [process for name in names if (process := look.enclaves(name)) is not None]
            return ProcessesSeen(tuple(found), len(names), look.unreadable)
    except OSError:
        return ProcessesSeen((), 0, 0)


def _identity(status: os.stat_result) -> FileIdentity:
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino


@contextmanager
def _folder(name: str, inside: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(name: str, inside: int, most: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=inside)
    try:
        pieces = [os.read(descriptor, _PIECE)]
        read = len(pieces[0])
        # The kernel gives maps a page at a time.
        while read < most and (piece := os.read(descriptor, _PIECE)):
            pieces.append(piece)
            read += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)[:most]
    finally:
        os.close(descriptor)
