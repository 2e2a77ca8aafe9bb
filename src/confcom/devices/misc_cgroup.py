"""EPC in the kernel's misc cgroup: capacity, use and limit per container, where the kernel counts `sgx_epc` there.

Released kernels do not; kernels with the SGX EPC cgroup patches do. Files and formats: Documentation/admin-guide/
cgroup-v2.rst, "Misc"; version 1 of cgroups has the same files under /sys/fs/cgroup/misc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confcom.devices.host import Host
from confcom.devices.processes import ProcessStat, parse_cgroup, parse_stat
from confcom.errors import PlatformError

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
_PARENT = 2
"""kthreadd, the parent of all threads of the kernel."""
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
        return line if line is not None and line.name == THREAD and line.parent == _PARENT else None
