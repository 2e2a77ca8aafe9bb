"""What the containers of a host use of EPC: enclave memory of processes, and EPC in the kernel's misc cgroup.

Linux counts no EPC per process or container. It shows which addresses a process has mapped from the SGX driver: an
upper bound of the EPC in use, because a page may never have been added, or be paged out. A limit can be compared with
that bound, because every one of these pages may be used at any moment.

Processes are found in one pass over /proc. Most have no enclave memory: each costs one read of its maps and a search.
A candidate is read again through a handle on its /proc folder, which stays with it even if its number is reused.

A mapped file is the enclave device if it has that device's number. The kernel shows the number through
/proc/PID/map_files (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN) or /proc/PID/root (CAP_SYS_PTRACE, which reading maps
needs as well). On a simulated node the device is an ordinary file, and that very file counts.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from confcom.devices.host import Host
from confcom.devices.sgx_node import ENCLAVE_PATHS, LEGACY_PATH
from confcom.errors import WANT, PlatformError, cannot_open

# Pod and container of a process, from the text of /proc/PID/cgroup. The forms are those of cgroup v1 and v2, of the
# kubelet's cgroupfs and systemd drivers, the ids of containerd, CRI-O and Docker, and paths as a reader in a cgroup
# namespace of its own sees them (`/../…`). Cgroups below the container's own (of a systemd or a Docker inside it) still
# belong to the container.
#
# A user can name cgroups below the ones that systemd delegates to it, so a name counts only where root made it: a
# pod's in the path of the kubelet, and neither a pod's nor a container's below a user's slice or a service.

MAX_CGROUP = 16 * 1024
"""Bytes of the file that are looked at."""

_UID = rb"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32}"
"""A pod's uid; systemd wants `_` for `-`. Static pods have the hash of their file instead."""
_QOS = rb"(?:{0}burstable|{0}besteffort)?"
_POD = re.compile(
    # systemd: …kubepods-burstable-pod<uid>.slice; its parents may be above a reader's cgroup namespace.
    rb"/(?:[\w-]*-)?kubepods" + _QOS.replace(b"{0}", b"-") + rb"-pod(" + _UID + rb")\.slice(?=[/:]|$)"
    # cgroupfs: …/kubepods/burstable/pod<uid>, or what such a reader sees of it.
    rb"|(?:/kubepods|^(?:/\.\.)+)" + _QOS.replace(b"{0}", b"/") + rb"/pod(" + _UID + rb")(?=/|$)"
)
# …/pod<uid>/<id>, …-pod<uid>.slice/cri-containerd-<id>.scope, …-pod<uid>.slice:cri-containerd:<id>, /docker/<id>
_CONTAINER = re.compile(rb"[/:-]([0-9a-f]{64})(?:\.scope)?(?=/|$)")
# Below these a user may make and name cgroups. A node may be a container itself; containerd's service holds
# containers that it was given a path of systemd's for without using systemd.
_DELEGATED = re.compile(rb"/user[^/]*|/(?!containerd\.service)[^/]+\.service|/(?![\w-]+-[0-9a-f]{64}\.)[^/]+\.scope")


@dataclass(frozen=True, slots=True)
class CgroupOwner:
    """`pod` is the pod's uid, `container` the runtime's id of 64 digits; None for what the cgroup does not name."""

    pod: str | None = None
    container: str | None = None


NOBODY = CgroupOwner()


def parse_cgroup(data: bytes) -> CgroupOwner:
    """The owner of a process, from its /proc/PID/cgroup; `NOBODY` for a process outside pods and containers."""
    owner = NOBODY
    for line in data[:MAX_CGROUP].splitlines():
        path = line.split(b":", 2)[-1]
        pod = _POD.search(path)
        # From the pod on, because a container may run containers of its own: the outermost is the pod's.
        container = _CONTAINER.search(path, 0 if pod is None else pod.end())
        first = pod or container
        if first is None or _DELEGATED.search(path, 0, first.start()):
            continue
        identifier = None if container is None else container[1].decode()
        if pod is not None:
            return CgroupOwner((pod[1] or pod[2]).decode().replace("_", "-"), identifier)
        if owner is NOBODY:
            owner = CgroupOwner(None, identifier)
    return owner


# Address ranges of enclaves, from the text of /proc/PID/maps (proc_pid_maps(5)). A line names the mapped file by the
# device of its file system and its inode, and by the path that the process itself sees. It does not show the number of
# a device file: `_Pass` asks the kernel for that.

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


@dataclass(frozen=True, slots=True)
class EnclaveProcess:
    """A process with enclave memory. `image` tells programs apart (`program_image`).

    `usable` are the addresses that it may use, `reserved` those that are only kept free for its enclave.
    """

    pid: int
    parent: int
    owner: CgroupOwner
    image: tuple[int, ...]
    usable: tuple[Range, ...]
    reserved: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class EnclaveUse:
    """Bytes of enclave memory of one owner, and how many processes have some."""

    mapped: int
    reserved: int
    processes: int


def count_use(processes: Iterable[EnclaveProcess]) -> Mapping[CgroupOwner, EnclaveUse]:
    """Add up per owner; each address once, and what fork() passed on only at the parent.

    A child that was forked has its parent's enclaves at the same addresses, and they are the same pages of EPC. A
    program that was started by exec() may have another enclave at equal addresses; its stack is at another place. Where
    that is not known, the child counts in full: the sum stays an upper bound.
    """
    found = list(processes)
    by_pid = {process.pid: process for process in found}
    sums: dict[CgroupOwner, tuple[int, int, int]] = {}
    for process in found:
        parent = by_pid.get(process.parent)
        inherited: tuple[Range, ...] = ()
        if parent is not None and process.image and parent.image == process.image and parent.owner == process.owner:
            inherited = (*parent.usable, *parent.reserved)
        usable = subtract(process.usable, inherited)
        reserved = subtract(process.reserved, (*inherited, *merge(process.usable)))
        mapped, kept, count = sums.get(process.owner, (0, 0, 0))
        sums[process.owner] = (mapped + size(usable), kept + size(reserved), count + 1)
    return {owner: EnclaveUse(*numbers) for owner, numbers in sums.items()}


_PARENT, _USER, _SYSTEM, _START = 1, 11, 12, 19
"""Places after the name: ppid, utime, stime, starttime."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """A line of /proc/PID/stat (proc_pid_stat(5)); `ticks` of processor time, `started` in ticks after boot."""

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


STUCK_AFTER = 5.0
"""Seconds that a process may keep its reader waiting; usually it is less than a millisecond."""
MAX_STUCK = 16
_MAX_STAT = 4096
_PIECE = 64 * 1024
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class EnclaveDevice:
    """What identifies the enclave device: its numbers, and files known to be it without asking the kernel."""

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
    """One pass. `unreadable` counts processes of which the kernel refused the maps: their use is not known."""

    enclaves: tuple[EnclaveProcess, ...]
    processes: int
    unreadable: int


class _Reader(threading.Thread):
    """Takes names of processes from `waiting` and reads them; files that were found to be the device are remembered.

    A process can keep its reader waiting for ever: it maps a file of a server that does not answer. `at` names the one
    that is read, also when the reader ended by a mistake; give the reader another `waiting` to abandon it.
    """

    def __init__(self, proc: Path, device: EnclaveDevice, waiting: deque[str]) -> None:
        super().__init__(name="processes", daemon=True)
        self.device = device
        self.waiting = waiting
        self.at = ""
        self.unreadable = 0
        self.failure: OSError | None = None
        self.found: list[EnclaveProcess] = []
        self._proc = proc
        self._devices: dict[FileIdentity, bool] = {}

    def run(self) -> None:
        """Read until none is waiting."""
        try:
            with _folder(str(self._proc)) as proc:
                while True:
                    self.at = self.waiting.popleft()
                    self._enclaves(self.at, proc)
                    self.at = ""
        except IndexError:
            pass  # none waits; asking first would not do: another thread replaces or empties `waiting`
        except OSError as error:
            self.failure = error

    def is_stuck(self) -> bool:
        """Wait for the end, and say whether one process takes longer than `STUCK_AFTER` instead."""
        before = None
        while self.is_alive() and (before is None or self.at != before):
            before = self.at
            self.join(STUCK_AFTER)
        return self.is_alive()

    def _enclaves(self, name: str, proc: int) -> None:
        try:
            if any(True for _ in enclave_candidates(_read(f"{name}/maps", proc, MAX_MAPS), self.device.files)):
                with _folder(name, proc) as process:
                    if (found := self._look(int(name), process)) is not None:
                        self.found.append(found)
        except OSError as error:
            if error.errno in WANT:
                raise
            self.unreadable += error.errno not in (errno.ENOENT, errno.ESRCH)  # it ended meanwhile

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
        with suppress(OSError):
            return self._matches(os.stat(f"map_files/{mapping.start:x}-{mapping.end:x}", dir_fd=process))
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


class ProcessFinder:
    """Finds the processes of a host that have enclave memory. Blocking."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stuck: dict[str, _Reader] = {}

    @property
    def stuck(self) -> Sequence[str]:
        """Numbers of processes that keep their readers waiting: they are left out, and count as unreadable."""
        return [name for name, reader in self._stuck.items() if reader.is_alive()]

    def look(self, device: EnclaveDevice) -> ProcessesSeen:
        """One pass over /proc, or `PlatformUnavailable`. Without a device there is nothing to look for.

        Beyond `MAX_STUCK` processes that keep their readers waiting, no further one is read.
        """
        self._stuck = {name: self._stuck[name] for name in self.stuck}
        names = [name for name in self._host.names("/proc") if name.isdigit() and len(name) <= _MAX_DIGITS]
        if not device.files:
            return ProcessesSeen((), 0, 0)
        waiting = deque(name for name in names if name not in self._stuck)
        unreadable, found = len(names) - len(waiting), list[EnclaveProcess]()
        while waiting and len(self._stuck) < MAX_STUCK:
            reader = _Reader(self._host.root / "proc", device, waiting)
            reader.start()
            if reader.is_stuck():
                self._stuck[reader.at] = reader
                reader.waiting = deque()
            if reader.failure is not None:  # a pass in part would be taken for less use
                raise cannot_open(reader.failure)
            unreadable += reader.unreadable + bool(reader.at)
            found += reader.found
        return ProcessesSeen(tuple(found), len(names), unreadable + len(waiting))


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
        found = bytearray()
        while len(found) < most and (piece := os.read(descriptor, _PIECE)):  # maps come a page at a time
            found += piece
        return bytes(found[:most])
    finally:
        os.close(descriptor)


# EPC in the misc cgroup: capacity, use and limit per container, where the kernel counts `sgx_epc` there. Released
# kernels do not; kernels with the SGX EPC cgroup patches do. Files and formats: "Misc" in
# Documentation/admin-guide/cgroup-v2.rst; version 1 of cgroups has the same files under /sys/fs/cgroup/misc.

RESOURCE = "sgx_epc"
MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/misc", "/sys/fs/cgroup/unified")
"""Where the root of the hierarchy with the misc controller may be: version 2, version 1, both side by side."""
MAX_DEPTH = 12
MAX_GROUPS = 20_000
"""Cgroups that are visited in search of containers."""

_ENABLE_ADVICE = (
    "Let the container runtime delegate the misc controller, or write +misc into cgroup.subtree_control of every "
    "cgroup above the containers."
)
_WRITE_ADVICE = (
    "Mount /sys/fs/cgroup writable under the host root and run as root; or set enforce to off, and the limit is only "
    "watched."
)


@dataclass(frozen=True, slots=True)
class MiscUse:
    """What a container's cgroup says, in bytes; `limit` None means none, `hits` how often the limit was met."""

    current: int
    limit: int | None
    hits: int


def parse_amounts(text: str) -> Mapping[str, int | None]:
    """Lines of `NAME AMOUNT`; `max` is None. Lines of another form are passed over, as later kernels may have some."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        name, _, amount = line.strip().partition(" ")
        if amount == "max":
            found[name] = None
        elif amount.isascii() and amount.isdigit() and len(amount) <= 20:
            found[name] = int(amount)
    return found


@dataclass(frozen=True, slots=True)
class MiscCgroup:
    """The hierarchy at `mount`, as the host knows it. `capacity` is the node's EPC in bytes as the kernel counts it."""

    host: Host
    mount: str
    capacity: int

    def containers(self) -> Mapping[str, str]:
        """The cgroup of every container, by the runtime's id."""
        return {owner: path for path, owner in _containers(self.host, self.mount)}

    def use(self, group: str) -> MiscUse | None:
        """None where the group is gone, or the controller is not enabled for it."""
        current = self._amount(f"{group}/misc.current", RESOURCE)
        if current is None:
            return None
        limit = self._amount(f"{group}/misc.max", RESOURCE)
        return MiscUse(current, limit, self._amount(f"{group}/misc.events", f"{RESOURCE}.max") or 0)

    def limit(self, group: str, size: int) -> bool:
        """Make the kernel hold a container to `size` bytes; whether that changed anything.

        `PlatformError` says why it cannot be done; a group that vanished meanwhile is no error.
        """
        present = self.host.read(f"{group}/misc.max")
        if present is None:
            if self.host.status(group) is None:
                return False
            raise PlatformError(f"{group} has no misc.max: the controller is not enabled there", advice=_ENABLE_ADVICE)
        if parse_amounts(present).get(RESOURCE) == size:
            return False
        try:
            self.host.write(f"{group}/misc.max", f"{RESOURCE} {size}\n")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PlatformError(f"cannot write {group}/misc.max: {error.strerror}", advice=_WRITE_ADVICE) from error
        return True

    def _amount(self, path: str, name: str) -> int | None:
        text = self.host.read(path)
        return None if text is None else parse_amounts(text).get(name)


def find_misc(host: Host) -> MiscCgroup | None:
    """The hierarchy in which the kernel counts EPC; None where it does not."""
    for mount in MOUNTS:
        text = host.read(f"{mount}/misc.capacity")
        capacity = None if text is None else parse_amounts(text).get(RESOURCE)
        if capacity is not None:
            return MiscCgroup(host, mount, capacity)
    return None


def _containers(host: Host, mount: str) -> Iterator[tuple[str, str]]:
    waiting, visited = [(mount, 0)], 0
    while waiting and visited < MAX_GROUPS:
        group, depth = waiting.pop()
        visited += 1
        owner = parse_cgroup(group.encode(errors="replace"))
        if owner.container is not None:
            # Its limit covers everything below it.
            yield group, owner.container
        elif depth < MAX_DEPTH:
            waiting += [(f"{group}/{name}", depth + 1) for name in host.folders(group)]


THREAD = b"ksgxd"
"""The kernel's thread that pages enclaves out: its processor time is what freeing EPC costs."""
_KTHREADD = 2
"""The parent of all threads of the kernel."""
PATIENCE = 60
"""Looks without the thread between two searches: a search reads a line of every process."""


class ReclaimThread:
    """Finds the thread once and then reads its line; searches again every `PATIENCE` looks while it is not there."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pid: str | None = None
        self._wait = 0

    def seconds(self) -> float | None:
        """Processor time since boot; None where there is no such thread."""
        line = self._line(self._pid) if self._pid is not None else None
        if line is None and self._wait == 0:
            self._pid, line = self._find()
            self._wait = PATIENCE
        self._wait -= 1 if line is None else self._wait
        return None if line is None else line.ticks / os.sysconf("SC_CLK_TCK")

    def _find(self) -> tuple[str | None, ProcessStat | None]:
        for name in self._host.names("/proc"):
            if name.isdigit() and (line := self._line(name)) is not None:
                return name, line
        return None, None

    def _line(self, name: str) -> ProcessStat | None:
        text = self._host.read(f"/proc/{name}/stat")
        line = None if text is None else parse_stat(text.encode(errors="replace"))
        return line if line is not None and line.name == THREAD and line.parent == _KTHREADD else None
