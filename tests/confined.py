"""Containers as Kubernetes makes them for the quote helper, straight from runc: all that may be taken away is.

User 65532 without a capability, `no_new_privs`, a read-only root, the seccomp profile that is shipped, and the
processes of the host in sight (hostPID). Needs root and runc, and a host on which it may make control groups.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

USER = 65532
ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "deploy" / "seccomp" / "quote-helper.json"
_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, str(ROOT))
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")


def start(
    folder: Path, command: Sequence[str], mounts: Mapping[str, Path], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a container whose bundle is in `folder`; `mounts` are those that it may write to, by their place in it."""
    (folder / "rootfs").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_configuration(command, mounts, environment or {})))
    return subprocess.Popen(
        ["runc", "run", "--bundle", str(folder), _name(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kernel_view(folder: Path) -> dict[str, str]:
    """What the kernel says of the first process of the container whose bundle is in `folder`."""
    state = subprocess.run(["runc", "state", _name(folder)], capture_output=True, check=True)
    lines = Path(f"/proc/{json.loads(state.stdout)['pid']}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@functools.cache
def obstacle() -> str:
    """Why there can be no such container here; empty when there can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("runc") is None:
        return "needs runc"
    with tempfile.TemporaryDirectory() as folder, start(Path(folder) / "trial", ["/bin/true"], {}) as trial:
        _, told = trial.communicate(timeout=60)
    return f"runc makes no container here: {told}" if trial.returncode else ""


def _name(folder: Path) -> str:
    return f"confcom-test-{os.getpid()}-{folder.name}"


def _configuration(
    command: Sequence[str], mounts: Mapping[str, Path], environment: Mapping[str, str]
) -> dict[str, Any]:
    read_only = [_bind(place, place, "ro") for place in _PROGRAMS if Path(place).exists()]
    writable = [_bind(str(source), place, "rw") for place, source in mounts.items()]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", **environment}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": USER, "gid": USER},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in (variables | {"PYTHONDONTWRITEBYTECODE": "1"}).items()],
            "cwd": "/",
            "capabilities": {kind: [] for kind in _CAPABILITIES},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *read_only,
            *writable,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts", "network")],
            # As the kubelet hands a Localhost profile on: the file's JSON is the runtime's own form.
            "seccomp": json.loads(PROFILE.read_text()),
        },
    }


def _bind(source: str, place: str, mode: str) -> dict[str, Any]:
    return {
        "destination": place, "source": source, "type": "bind", "options": ["rbind", mode, "nosuid", "nodev"],
    }  # fmt: skip
