"""Where the cluster keeps what it is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ROOT / "tests" / "e2e" / "cluster"
NAMESPACE = Path("/run/netns/kube")


@dataclass(frozen=True)
class Home:
    """The cluster's folder; nothing of the cluster is outside but /var/lib/kubelet, network namespaces and cgroups."""

    path: Path

    @property
    def programs(self) -> Path:
        """Folder of the programs."""
        return self.path / "bin"

    @property
    def kubeconfig(self) -> Path:
        """Credentials of the administrator, good inside and outside of the namespace."""
        return self.path / "admin.kubeconfig"

    @property
    def runtime_socket(self) -> Path:
        """Where containerd listens."""
        return self.path / "run" / "containerd" / "containerd.sock"

    def environment(self) -> dict[str, str]:
        """The environment of the shell scripts."""
        return os.environ | {"KUBE_HOME": str(self.path)}


def default_home() -> Home:
    """$KUBE_HOME, else a folder in the user's cache."""
    return Home(Path(os.environ.get("KUBE_HOME") or Path.home() / ".cache" / "confcom-kubernetes"))
