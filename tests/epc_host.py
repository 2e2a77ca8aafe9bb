"""A host whose /proc shows processes that a test starts, for the exporter of EPC use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from confcom.devices.sgx_node import declare_node

UID = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"
"""Of the pod whose cgroup has the containers."""


class Node:
    """A simulated node whose /proc shows the processes that the test starts, in cgroups that the test chooses."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "host"
        (self.root / "proc").mkdir(parents=True)
        self.simulated = folder / "node"
        declare_node(self.simulated, (168 << 20,), b"machine")
        self._running: list[subprocess.Popen[bytes]] = []

    def hold(self, mib: int, container: str | None) -> int:
        """Start a simulated enclave; gives its process id."""
        command = [sys.executable, "-m", "confcom", "simulate", "hold", "--epc", f"{mib}Mi"]
        process = subprocess.Popen(
            [*command, "--device", str(self.simulated / "dev/sgx_enclave")], stdout=subprocess.PIPE
        )
        self._running.append(process)
        assert process.stdout is not None
        assert b"holds" in process.stdout.readline()
        place = self.root / "proc" / str(process.pid)
        place.mkdir()
        for name in ("maps", "stat"):
            (place / name).symlink_to(f"/proc/{process.pid}/{name}")
        cgroup = "0::/system.slice/x\n" if container is None else f"0::/kubepods/pod{UID}/{container}\n"
        (place / "cgroup").write_text(cgroup)
        return process.pid

    def end(self, pid: int) -> None:
        for process in self._running:
            if process.pid == pid:
                process.terminate()
                assert process.wait(60) == 0

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
