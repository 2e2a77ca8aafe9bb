"""Where the cluster keeps what it is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from testcluster.versions import chosen_version, usual_version

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ROOT / "tests" / "e2e" / "cluster"
_FOLDER = "confcom-kubernetes"


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
    """$KUBE_HOME, else a folder in the user's cache: each version that $KUBE_VERSION can name has its own."""
    if given := os.environ.get("KUBE_HOME"):
        return Home(Path(given))
    version = chosen_version()
    usual = usual_home()
    return usual if version == usual_version() else Home(usual.path.with_name(f"{_FOLDER}-{version}"))


def usual_home() -> Home:
    """The folder of the version that is used where none is named."""
    return Home(Path.home() / ".cache" / _FOLDER)
