"""Walls around the pods of a test cluster, where network plugins put theirs: behind the translation of Services.

The test cluster's own plugin enforces no network policies. Other than there, all pods share the same walls.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

PODS = "10.244.0.0/22"
CHAIN = "E2E-WALLS"
HOOKS = ("INPUT", "FORWARD")


@contextmanager
def walls(ports: Iterable[int]) -> Iterator[None]:
    """Let pods open TCP connections to these ports, and to nothing else."""
    _lower()
    _iptables("-N", CHAIN)
    _iptables("-A", CHAIN, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "RETURN")
    for port in ports:
        _iptables("-A", CHAIN, "-p", "tcp", "--dport", str(port), "-j", "RETURN")
    _iptables("-A", CHAIN, "-j", "REJECT")
    for hook in HOOKS:
        _iptables("-I", hook, "1", "-s", PODS, "-j", CHAIN)
    try:
        yield
    finally:
        _lower()


def _lower() -> None:
    for hook in HOOKS:
        _iptables("-D", hook, "-s", PODS, "-j", CHAIN, check=False)
    _iptables("-F", CHAIN, check=False)
    _iptables("-X", CHAIN, check=False)


def _iptables(*words: str, check: bool = True) -> None:
    namespace = f"--net=/run/netns/{os.environ.get('KUBE_NAME', 'kube')}"
    command = ["nsenter", namespace, "--", "iptables", "-w", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stderr
