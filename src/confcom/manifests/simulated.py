"""Objects of simulated clusters alone: the world of all nodes, each node's machine, and the cleaning of nodes."""

from __future__ import annotations

import base64

import msgspec

from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.objects import (
    CLEANUP,
    ITSELF,
    NODE_CRITICAL,
    HostPath,
    Mounted,
    Object,
    completed,
    confined,
    container,
    daemon_set,
    from_pod,
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
"""The simulated node's hardware as files. The kubelet mounts them into containers, so the path is also the host's."""
NODE = HostPath("simulated-node", NODE_FOLDER, "DirectoryOrCreate")
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


def world_volume() -> Object:
    """The world's machine file."""
    return {"name": "world", "secret": {"secretName": WORLD_SECRET, "defaultMode": 0o440}}


TRUST_FOLDER = "/trust"
"""Where the root of the world is made for a service that judges its evidence, in memory."""
TRUSTED_ROOT = f"{TRUST_FOLDER}/world/{ROOT_KEY}"


def trust_volumes(config: AddonConfig) -> list[Mounted]:
    """The root for a service that judges evidence; none on the platform of Intel."""
    if config.platform != "simulated":
        return []
    folder = {"name": "trust", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    return [(folder, mount("trust", TRUST_FOLDER, read_only=True)), (world_volume(), None)]


def trust_container(config: AddonConfig) -> Object:
    """An init container that takes the root out of the simulated world, with which quotes could be forged."""
    if config.platform != "simulated":
        return {}
    made = container(
        config,
        "root",
        ["simulate", "collateral", f"{WORLD_FOLDER}/{WORLD_KEY}", "-o", f"{TRUST_FOLDER}/world"],
        resources=resources("10m", "64Mi", "256Mi"),
        securityContext=confined(),
        volumeMounts=[mount("world", WORLD_FOLDER, read_only=True), mount("trust", TRUST_FOLDER)],
    )
    return {"initContainers": [made]}


def machine_volume() -> Object:
    """Where the node's own machine file is made, in memory."""
    return {"name": "machine", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def machine_container(config: AddonConfig) -> Object:
    """Init container that makes the node's machine from the world and the node's name: the same at every start."""
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


_FOLDER, _, _NODE = NODE_FOLDER.rpartition("/")


def cleanup(config: AddonConfig, *, version: str) -> list[Object]:
    """A DaemonSet that empties the folders of simulated nodes, and its account; nothing on the platform of Intel.

    A pod of it is ready once the folder of its node is gone.
    """
    if config.platform != "simulated":
        return []
    folder = HostPath("confcom", _FOLDER, "DirectoryOrCreate", read_only=False)
    settled = msgspec.structs.replace(config, image=image_of(config, version))
    words = container(settled, "remove", ["-rf", f"{_FOLDER}/{_NODE}"])
    remove = words | {
        "command": ["rm"],
        "resources": resources("10m", "16Mi", "64Mi"),
        "securityContext": confined(user=0),
        "volumeMounts": [folder.mount()],
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
        "volumes": [folder.volume()],
    }
    made = daemon_set(CLEANUP, settled, pod, {"maxUnavailable": "100%", "maxSurge": 0})
    return completed([made, service_account(CLEANUP, token=False)], settled, version)
