"""Looks at a node's use of EPC, and lets the kernel hold containers to what they requested. Blocking: for a thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from confcom.devices.enclave_processes import EnclaveDevice, find_enclave_processes
from confcom.devices.enclave_use import count_use
from confcom.devices.epc_reclaim import ReclaimThread
from confcom.devices.host import Host
from confcom.devices.misc_cgroup import MiscCgroup, MiscUse, find_misc
from confcom.devices.sgx_node import SgxNode, find_sgx
from confcom.errors import ConfcomError
from confcom.services.epc_use import NodeUse, Seen


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What came of it: containers whose limit was set anew, and why it failed for others."""

    set_anew: int
    held: int
    failures: tuple[str, ...]


class EpcSight:
    """`host` is where the processes are, `node` where the devices are: another only on a simulated node."""

    def __init__(self, host: Host, node: Host) -> None:
        self._host = host
        self._node = node
        self._reclaim = ReclaimThread(host)
        self._misc: MiscCgroup | None = None
        self._groups: Mapping[str, str] = {}
        self.sgx: SgxNode = find_sgx(node)

    @property
    def enforceable(self) -> bool:
        """Whether the kernel counts EPC per cgroup, as far as the last look showed."""
        return self._misc is not None

    def look(self) -> Seen:
        """One pass."""
        started = time.perf_counter()
        self.sgx = find_sgx(self._node)
        # Every time anew: a driver may be loaded, a device appear under another number.
        seen = find_enclave_processes(self._host, EnclaveDevice.of(self._node))
        self._misc = find_misc(self._host)
        self._groups = {} if self._misc is None else self._misc.containers()
        return Seen(
            use=count_use(seen.enclaves),
            groups=self._uses(),
            capacity=None if self._misc is None else self._misc.capacity,
            reclaim_seconds=self._reclaim.seconds(),
            processes=seen.processes,
            unreadable=seen.unreadable,
            took=time.perf_counter() - started,
        )

    def enforce(self, use: NodeUse) -> Enforcement:
        """Write what each container requested into its cgroup, where something else stands there."""
        set_anew = held = 0
        failures: list[str] = []
        for row in use.containers:
            group = self._groups.get(row.id)
            if self._misc is None or group is None or row.requested is None:
                continue
            try:
                set_anew += self._misc.limit(group, row.requested)
                held += 1
            except ConfcomError as error:
                failures.append(f"{error.message}. {error.advice()}")
        return Enforcement(set_anew, held, tuple(failures))

    def _uses(self) -> dict[str, MiscUse]:
        if self._misc is None:
            return {}
        found = {container: self._misc.use(group) for container, group in self._groups.items()}
        return {container: use for container, use in found.items() if use is not None}
