"""Who checks the quotes of a cluster's simulated nodes, outside of the cluster."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubectl import ADDON_NAMESPACE, Kubectl


@dataclass(frozen=True)
class RelyingParty:
    """Knows the cluster's root, which the add-on publishes, and the collateral of its platforms."""

    folder: Path

    @classmethod
    def of(cls, cluster: Kubectl, folder: Path) -> RelyingParty:
        """Take root and world from the cluster."""
        root = cluster.get("configmap", "confcom-simulated-root", "-n", ADDON_NAMESPACE)["data"]["root_ca.pem"]
        world = cluster.get("secret", "confcom-simulated-world", "-n", ADDON_NAMESPACE)["data"]["machine.json"]
        (folder / "root_ca.pem").write_text(root)
        (folder / "machine.json").write_bytes(base64.b64decode(world))
        command = [sys.executable, "-m", "confcom", "simulate", "collateral", "machine.json", "-o", "collateral"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return cls(folder)

    def verify(self, quote: bytes, report_data: str, *, trust: bool = True) -> Any:
        """The verdict of `confcom verify`, as JSON, with its exit code."""
        path = self.folder / "quote"
        path.write_bytes(quote)
        command = [
            sys.executable,
            "-m",
            "confcom",
            "verify",
            str(path),
            "--collateral",
            str(self.folder / "collateral"),
        ]
        command += ["--trust-root", str(self.folder / "root_ca.pem")] if trust else []
        command += ["--report-data", report_data, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) | {"exit_code": done.returncode}


def quote_in(log: str) -> bytes:
    """The quote that a Job printed, in its log's last line."""
    return base64.b64decode(log.strip().splitlines()[-1], validate=True)
