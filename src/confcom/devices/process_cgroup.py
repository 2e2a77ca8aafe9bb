"""Whose a process is: pod and container, from the text of /proc/PID/cgroup; pure.

Every form in use is known: cgroup v1 and v2, the kubelet's cgroupfs and systemd drivers, the ids of containerd, CRI-O
and Docker, and paths as a reader in a cgroup namespace of its own sees them (`/../…`). What stands below the
container's own cgroup (a systemd or a Docker inside it) still belongs to the container.

A user can name cgroups below the ones that systemd delegates to it, so a name counts only where root made it: a pod's
in the path of the kubelet, and neither a pod's nor a container's below a user's slice or a service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
    """The owner of a process whose /proc/PID/cgroup reads so. A process of the host is `NOBODY`'s."""
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
