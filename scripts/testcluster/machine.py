"""What the cluster needs of the machine: Debian's tools, and the right to make namespaces."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from testcluster.home import SOURCES, Home
from testcluster.programs import missing

NETWORK_PLUGINS = "/usr/lib/cni"
PATH = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{NETWORK_PLUGINS}"

_PACKAGES = {
    "runc": "runc",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "mount": "mount",
    "debootstrap": "debootstrap",
    "gpgv": "gpgv",
    "ptp": "containernetworking-plugins",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
"""Tool or file to Debian package."""
IMAGE_TOOLS = ("debootstrap", "gpgv", "/usr/share/keyrings/debian-archive-keyring.gpg")
"""What makes the image's base; Ubuntu's debootstrap comes without Debian's keys."""
_API_PORT = int(os.environ.get("KUBE_PORT") or 6443)


def absent_packages(tools: Iterable[str] = tuple(_PACKAGES)) -> list[str]:
    """Debian packages that have to be installed for these tools."""
    return sorted(
        {_PACKAGES[tool] for tool in tools if not (Path("/", tool).is_file() or shutil.which(tool, path=PATH))}
    )


def install_packages(tools: Iterable[str] = tuple(_PACKAGES)) -> None:
    """Install what is absent of these tools."""
    packages = absent_packages(tools)
    if not packages:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
    subprocess.run(["apt-get", "update", "-q"], env=environment, check=True)
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    subprocess.run(command, env=environment, check=True)


def reason_against(home: Home) -> str | None:
    """Why this machine cannot run the cluster, in one sentence; None when nothing speaks against it."""
    return _kind() or _rights() or _supplies(home) or _occupied(home)


def reason_against_image() -> str | None:
    """Why the container image cannot be built here."""
    if reason := _kind():
        return reason
    if os.geteuid() != 0:
        return "debootstrap makes the image's base as root, and this user is not root"
    if absent_packages(("debootstrap",)) and shutil.which("apt-get", path=PATH) is None:
        return "there is no apt-get to install debootstrap with"
    return None


def _kind() -> str | None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the cluster runs on Linux on x86-64, not on {platform.system()} on {platform.machine()}"
    return None


def _rights() -> str | None:
    if os.geteuid() != 0:
        return "the cluster's kubelet and containerd need root, and this user is not root"
    for flag, right in (("--net", "network namespaces"), ("--mount", "mounts of its own")):
        if subprocess.run(["unshare", flag, "true"], check=False, capture_output=True).returncode:
            return f"root may not make {right} here, and pods need them"
    if not Path("/proc/filesystems").read_text().count("\toverlay\n"):
        return "the kernel has no overlay file system, which containerd keeps containers on"
    return None


def _supplies(home: Home) -> str | None:
    packages = absent_packages()
    if packages and shutil.which("apt-get", path=PATH) is None:
        return f"there is no apt-get to install {', '.join(packages)} with"
    if missing(home):
        return _go_reason()
    return None


def _go_reason() -> str | None:
    go = shutil.which("go")
    if go is None:
        return "the cluster's programs are not built yet, and there is no Go here to build them"
    said = subprocess.run([go, "env", "GOVERSION"], check=False, capture_output=True, text=True).stdout
    modules = (SOURCES / "modules").glob("*/go.mod")
    needed = max(_numbers(line) for path in modules for line in path.read_text().splitlines() if line.startswith("go "))
    if _numbers(said) < needed:
        return f"Go is {said.strip()}, and {'.'.join(map(str, needed))} is needed to build the cluster's programs"
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _occupied(home: Home) -> str | None:
    return _port_taken(home) or (None if os.environ.get("KUBE_CGROUP") else _other_kubelet(home))


def _other_kubelet(home: Home) -> str | None:
    """Two of them would tidy up each other's cgroups."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(os.fsdecode(words[0])).name == "kubelet" and not words[0].startswith(os.fsencode(home.programs)):
            return f"another kubelet runs here (process {process.parent.name}), and its cgroups would be in the way"
    return None


def _port_taken(home: Home) -> str | None:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", _API_PORT)) == 0
    if taken and not (home.path / "run" / "forward.pid").exists():
        return f"port {_API_PORT} of 127.0.0.1 is taken by another program"
    return None
