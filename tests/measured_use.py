"""What a cluster says of measured use of EPC: events about pods, and `confcom top`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from kubectl import Kubectl

MIB = 1 << 20


def events(cluster: Kubectl, name: str, namespace: str = "e2e") -> list[dict[str, Any]]:
    """The exporter's events about a pod."""
    found = cluster.items("events.events.k8s.io", "-n", namespace, f"--field-selector=regarding.name={name}")
    return [event for event in found if event["reason"].startswith("Epc")]


def top(cluster: Kubectl) -> dict[str, Any]:
    """Pods by name, as `confcom top` shows them with nothing but a kubeconfig."""
    command = [sys.executable, "-m", "confcom", "top", "--kubeconfig", cluster.kubeconfig, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == []
    return {line["name"]: line for line in found["pods"]} | {"": found["nodes"][0]}
