"""Whose a process is: pod and container, from the text of /proc/PID/cgroup; pure.

Every form in use is known: cgroup v1 and v2, the kubelet's cgroupfs and systemd drivers, and the ids of containerd,
CRI-O and Docker. What stands below the container's own cgroup (a systemd or a Docker inside it) still belongs to the
container.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CGROUP = 16 * 1024
"""Bytes of the file that are looked at."""

_UID = rb"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32}"
"""A pod's uid; systemd wants `_` for `-`. Static pods have the hash of their file instead."""
_POD = re.compile(rb"pod(" + _UID + rb")\b")
# …/pod<uid>/<id>, …-pod<uid>.slice/cri-containerd-<id>.scope, …-pod<uid>.slice:cri-containerd:<id>, /docker/<id>
_CONTAINER = re.compile(rb"[/:-]([0-9a-f]{64})(?:\.scope)?(?=[/\n]|$)")


@dataclass(frozen=True, slots=True)
class CgroupOwner:
    """`pod` is the pod's uid, `container` the runtime's id of 64 digits; None for what the cgroup does not name."""

    pod: str | None = None
    container: str | None = None


NOBODY = CgroupOwner()


def parse_cgroup(data: bytes) -> CgroupOwner:
    """The owner of a process whose /proc/PID/cgroup reads so. A process of the host is `NOBODY`'s."""
    data = data[:MAX_CGROUP]
    pod = _POD.search(data)
    # From the pod on, because a container may run containers of its own: the outermost is the pod's.
    container = _CONTAINER.search(data, 0 if pod is None else pod.end())
    return CgroupOwner(
        None if pod is None else pod[1].decode().replace("_", "-"),
        None if container is None else container[1].decode(),
    )
