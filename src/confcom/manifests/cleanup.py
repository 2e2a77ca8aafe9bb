"""Pods that empty the folders of simulated nodes when the add-on is purged. Real nodes have none."""

from __future__ import annotations

import msgspec

from confcom.manifests import simulated
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.objects import (
    ITSELF,
    NODE_CRITICAL,
    Object,
    Workload,
    completed,
    confined,
    container,
    daemon_set,
    host_path,
    mount,
    resources,
    service_account,
)

WORKLOAD = Workload(ITSELF.component, "confcom-cleanup")
_FOLDER, _, _NODE = simulated.NODE_FOLDER.rpartition("/")


def cleanup(config: AddonConfig, *, version: str) -> list[Object]:
    """A DaemonSet whose pods are ready once their node is clean, and its account; nothing for real nodes."""
    if config.platform != "simulated":
        return []
    settled = msgspec.structs.replace(config, image=image_of(config, version))
    words = container(settled, "remove", ["-rf", f"{_FOLDER}/{_NODE}"])
    remove = words | {
        "command": ["rm"],
        "resources": resources("10m", "16Mi", "64Mi"),
        "securityContext": confined(user=0),
        "volumeMounts": [mount("confcom", _FOLDER)],
    }
    stay = container(settled, "done", ["3600"]) | {
        "command": ["sleep"],
        "resources": resources("10m", "16Mi", "64Mi"),
        "securityContext": confined(),
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "priorityClassName": NODE_CRITICAL,
        "terminationGracePeriodSeconds": 0,
        "initContainers": [remove],
        "containers": [stay],
        "volumes": [host_path("confcom", _FOLDER, "DirectoryOrCreate")],
    }
    made = daemon_set(WORKLOAD, settled, pod, {"maxUnavailable": "100%", "maxSurge": 0})
    return completed([made, service_account(WORKLOAD, token=False)], settled, version)
