"""Objects of simulated clusters alone: the world of all nodes, each node's machine, and the cleaning of nodes."""

from __future__ import annotations

import base64

import msgspec

from confcom.manifests import objects
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.objects import CLEANUP, ITSELF, Mounted, Object, mount, namespaced_object

WORLD_SECRET = "confcom-simulated-world"  # noqa: S105 - a name
WORLD_KEY = "machine.json"
ROOT_CONFIG_MAP = "confcom-simulated-root"
ROOT_KEY = "root_ca.pem"

NODE_FOLDER = "/var/lib/confcom/simulated-node"
"""The simulated node's hardware as files. The kubelet mounts them into containers, so the path is also the host's."""
WORLD_FOLDER = "/world"
MACHINE_FOLDER = "/machine"
MACHINE_FILE = f"{MACHINE_FOLDER}/machine.json"
_WORLD = mount("world", WORLD_FOLDER, read_only=True)


def world_objects(machine_file: bytes, root: bytes) -> list[Object]:
    """The world as a Secret, and its root as a ConfigMap for those who choose to trust it."""
    secret = namespaced_object("v1", "Secret", WORLD_SECRET, ITSELF.component, type="Opaque")
    secret["data"] = {WORLD_KEY: base64.b64encode(machine_file).decode()}
    published = namespaced_object("v1", "ConfigMap", ROOT_CONFIG_MAP, ITSELF.component)
    published["data"] = {ROOT_KEY: root.decode()}
    return [secret, published]


def node_folder(*, read_only: bool) -> Mounted:
    """The folder of the node's hardware."""
    return objects.host_path("simulated-node", NODE_FOLDER, "DirectoryOrCreate", read_only=read_only)


def world_volume() -> Object:
    """The world's machine file."""
    return {"name": "world", "secret": {"secretName": WORLD_SECRET, "defaultMode": 0o440}}


def machine_volume() -> Mounted:
    """Where the node's own machine file is made, in memory."""
    return objects.memory_folder("machine", "1Mi"), [mount("machine", MACHINE_FOLDER)]


def machine_container(config: AddonConfig) -> Object:
    """Init container that makes the node's machine from the world and the node's name: the same at every start."""
    words = ["simulate", "machine", "--world", f"{WORLD_FOLDER}/{WORLD_KEY}", "--name", "$(NODE_NAME)"]
    return objects.task(
        config,
        "machine",
        [*words, "-o", MACHINE_FILE],
        [_WORLD, mount("machine", MACHINE_FOLDER)],
        env=[objects.from_pod("NODE_NAME", "spec.nodeName")],
        securityContext=objects.confined(user=0),
    )


TRUST_FOLDER = "/trust"
"""Where the root of the world is made for a service that judges its evidence, in memory."""
TRUSTED_ROOT = f"{TRUST_FOLDER}/world/{ROOT_KEY}"


def trust_volumes() -> list[Mounted]:
    """The root for a service that judges evidence."""
    folder = objects.memory_folder("trust", "1Mi")
    return [(folder, [mount("trust", TRUST_FOLDER, read_only=True)]), (world_volume(), [])]


def trust_container(config: AddonConfig) -> Object:
    """An init container that takes the root out of the simulated world, with which quotes could be forged."""
    words = ["simulate", "collateral", f"{WORLD_FOLDER}/{WORLD_KEY}", "-o", f"{TRUST_FOLDER}/world"]
    return objects.task(config, "root", words, [_WORLD, mount("trust", TRUST_FOLDER)])


_FOLDER, _, _NODE = NODE_FOLDER.rpartition("/")


def cleanup(config: AddonConfig, *, version: str) -> list[Object]:
    """A DaemonSet that empties the folders of simulated nodes, and its account; nothing on the platform of Intel.

    A pod of it is ready once the folder of its node is gone.
    """
    if config.platform != "simulated":
        return []
    volume, mounts = objects.host_path("confcom", _FOLDER, "DirectoryOrCreate", read_only=False)
    settled = msgspec.structs.replace(config, image=image_of(config, version))
    root = objects.confined(user=0)
    words = ["-rf", f"{_FOLDER}/{_NODE}"]
    pod: Object = {
        "automountServiceAccountToken": False,
        "dnsPolicy": objects.dns_policy(()),
        "terminationGracePeriodSeconds": 0,
        "initContainers": [objects.task(settled, "remove", words, mounts, command=["rm"], securityContext=root)],
        "containers": [objects.task(settled, "done", ["3600"], [], command=["sleep"])],
        "volumes": [volume],
    }
    made = objects.daemon_set(CLEANUP, settled, pod)
    at_once = {"maxUnavailable": "100%", "maxSurge": 0}
    made["spec"]["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": at_once}
    return objects.completed([made, objects.service_account(CLEANUP, token=False)], settled, version)
