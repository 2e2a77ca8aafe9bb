"""How much the kernel works to free EPC: the processor time of its thread `ksgxd`, which pages enclaves out."""

from __future__ import annotations

import os

from confcom.devices.host import Host
from confcom.devices.process_stat import ProcessStat, parse_stat

THREAD = b"ksgxd"
_PARENT = 2
"""kthreadd, the parent of all threads of the kernel."""
PATIENCE = 60
"""Looks without the thread between two searches: a search reads a line of every process."""


class ReclaimThread:
    """Finds the thread once and then reads its line; looked for again now and then when it is not there."""

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
