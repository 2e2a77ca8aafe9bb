"""What a simulated cluster needs beside the rest: one world for all, a machine of it for every node."""

from __future__ import annotations

import base64

import msgspec

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
    from_pod,
    host_path,
    mount,
    namespaced_object,
    resources,
    service_account,
)

WORLD_SECRET = "confcom-simulated-world"  # noqa: S105 - a name
WORLD_KEY = "machine.json"
ROOT_CONFIG_MAP = "confcom-simulated-root"
ROOT_KEY = "root_ca.pem"

NODE_FOLDER = "/var/lib/confcom/simulated-node"
"""The simulated node; the same path on the host, because the kubelet mounts its files into containers."""
WORLD_FOLDER = "/world"
MACHINE_FOLDER = "/machine"
MACHINE_FILE = f"{MACHINE_FOLDER}/machine.json"


def world_objects(machine_file: bytes, root: bytes) -> list[Object]:
    """The world as a Secret, and its root as a ConfigMap for those who choose to trust it."""
    secret = namespaced_object("v1", "Secret", WORLD_SECRET, ITSELF.component, type="Opaque")
    secret["data"] = {WORLD_KEY: base64.b64encode(machine_file).decode()}
    published = namespaced_object("v1", "ConfigMap", ROOT_CONFIG_MAP, ITSELF.component)
    published["data"] = {ROOT_KEY: root.decode()}
    return [secret, published]


def node_folder() -> Object:
    """The folder on the host that stands for the node's hardware."""
    return host_path("simulated-node", NODE_FOLDER, "DirectoryOrCreate")


def world_volume() -> Object:
    """The world's machine file."""
    return {"name": "world", "secret": {"secretName": WORLD_SECRET, "defaultMode": 0o440}}


def machine_volume() -> Object:
    """Where the node's own machine file is made, in memory."""
    return {"name": "machine", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def machine_container(config: AddonConfig) -> Object:
    """Makes the node's machine from the world and the node's name: the same machine at every start."""
    words = ["simulate", "machine", "--world", f"{WORLD_FOLDER}/{WORLD_KEY}", "--name", "$(NODE_NAME)"]
    return container(
        config,
        "machine",
        [*words, "-o", MACHINE_FILE],
        env=[from_pod("NODE_NAME", "spec.nodeName")],
        resources=resources("10m", "64Mi", "256Mi"),
        securityContext=confined(user=0),
        volumeMounts=[mount("world", WORLD_FOLDER, read_only=True), mount("machine", MACHINE_FOLDER)],
    )


# --- Pods that empty the folders of simulated nodes when the add-on is purged. Real nodes have none -------------------


CLEANUP = Workload(ITSELF.component, "confcom-cleanup")
_FOLDER, _, _NODE = NODE_FOLDER.rpartition("/")


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
    made = daemon_set(CLEANUP, settled, pod, {"maxUnavailable": "100%", "maxSurge": 0})
    return completed([made, service_account(CLEANUP, token=False)], settled, version)
