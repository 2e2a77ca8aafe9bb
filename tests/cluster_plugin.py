"""The device plugin alone on a test cluster, as a pod with no more rights than it is documented to need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from kubectl import Kubectl

NAMESPACE = "e2e-plugin"
NAME = "plugin"
FOLDERS = {
    "device-plugins": "/var/lib/kubelet/device-plugins",
    "registry": "/var/lib/kubelet/plugins_registry",
    "pod-resources": "/var/lib/kubelet/pod-resources",
    "cdi": "/var/run/cdi",
    "node": "/var/lib/confcom/e2e-node",
}
RESOURCE_API = "resource.k8s.io"
CLUSTER_SCRIPTS = Path(__file__).resolve().parent / "e2e" / "cluster"


class ClusterPlugin:
    """One plugin pod on the first node. `start` replaces what runs; `remove` leaves nothing behind."""

    def __init__(self, cluster: Kubectl, image: str) -> None:
        self.cluster = cluster
        self.image = image
        self.node: str = cluster.items("nodes")[0]["metadata"]["name"]

    def prepare(self) -> None:
        """Namespace and rights."""
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}},
            self._role(),
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": NAMESPACE},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAMESPACE},
                "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
            },
        )

    def start(self, *words: str) -> None:
        """Run `confcom device-plugin` with these words, and wait until it is ready."""
        self.stop()
        self.cluster.apply(self._pod(words))
        self.cluster.wait("the plugin to be ready", self._ready, seconds=60)

    def stop(self) -> None:
        """End it in order."""
        self.cluster("delete", "pod", NAME, "-n", NAMESPACE, "--ignore-not-found", "--wait")

    def kill(self) -> None:
        """End it as a crash does; its pod is started again by hand."""
        self.cluster("delete", "pod", NAME, "-n", NAMESPACE, "--grace-period=0", "--force")

    def remove(self) -> None:
        """Take everything away."""
        self.stop()
        for kind in ("clusterrolebinding", "clusterrole", "namespace"):
            self.cluster("delete", kind, NAMESPACE, "--ignore-not-found", "--wait")

    def log(self) -> str:
        """What it said."""
        return self.cluster("logs", NAME, "-n", NAMESPACE)

    def amounts(self, part: str = "allocatable") -> dict[str, str]:
        """The node's amounts."""
        found: dict[str, str] = self.cluster.get("node", self.node)["status"][part]
        return found

    def _ready(self) -> bool:
        found = self.cluster.get("pod", NAME, "-n", NAMESPACE)["status"]
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in found.get("conditions", []))

    def _role(self) -> dict[str, Any]:
        """Its own node by name, and nothing of other nodes; slices cannot be named beforehand."""
        own = [self.node]
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAMESPACE},
            "rules": [
                {"apiGroups": [""], "resources": ["nodes"], "resourceNames": own, "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["nodes/status"], "resourceNames": own, "verbs": ["patch"]},
                {
                    "apiGroups": [RESOURCE_API],
                    "resources": ["resourceslices"],
                    "verbs": ["list", "watch", "create", "update", "delete"],
                },
                {"apiGroups": [RESOURCE_API], "resources": ["resourceclaims"], "verbs": ["get"]},
            ],
        }

    def _pod(self, words: tuple[str, ...]) -> dict[str, Any]:
        command = 'confcom simulate machine -o /tmp/machine.json && exec confcom device-plugin "$@"'
        own = ["--machine", "/tmp/machine.json", "--simulated-node", FOLDERS["node"], "--node-name", self.node]
        container = {
            "name": NAME,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command, "sh", *own, "--http", "[::]:9465", *words],
            "securityContext": {"runAsUser": 0, "capabilities": {"drop": ["ALL"]}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9465}, "periodSeconds": 1},
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in FOLDERS.items()],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "serviceAccountName": NAME,
                "nodeName": self.node,
                "terminationGracePeriodSeconds": 5,
                "containers": [container],
                "volumes": [
                    {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
                    for name, path in FOLDERS.items()
                ],
            },
        }


def own_cluster(cluster: Kubectl) -> Path | None:
    """The folder of the cluster whose processes are ours to restart; None for another cluster."""
    home = Path(os.environ.get("KUBE_HOME") or Path.home() / ".cache" / "confcom-kubernetes")
    kubeconfig = home / "admin.kubeconfig"
    ours = kubeconfig.exists() and Path(cluster.kubeconfig).exists() and kubeconfig.samefile(cluster.kubeconfig)
    return home if ours else None


def forget_topology(home: Path) -> None:
    """Take away what a kubelet remembers of devices and CPUs: it does not start on the memory of another topology."""
    folder = home / "data" / "node" / "var" / "lib" / "kubelet"
    for name in ("device-plugins/kubelet_internal_checkpoint", "cpu_manager_state", "memory_manager_state"):
        (folder / name).unlink(missing_ok=True)


def forget_devices(home: Path, cluster: Kubectl) -> None:
    """Restart the kubelet without its memory of devices, and delete their amounts from the node's status."""
    environment = os.environ | {"KUBE_HOME": str(home)}
    subprocess.run([str(CLUSTER_SCRIPTS / "down.sh"), "kubelet"], env=environment, check=True, capture_output=True)
    forget_topology(home)
    # All of them: where one is left, its pods are started before the plugin, without devices.
    node = cluster.items("nodes")[0]
    gone = dict.fromkeys(name for name in node["status"]["capacity"] if "sgx" in name)
    patch = json.dumps({"status": {"capacity": gone, "allocatable": gone}})
    cluster("patch", "node", node["metadata"]["name"], "--subresource=status", "--type=merge", "-p", patch)
    subprocess.run([str(CLUSTER_SCRIPTS / "up.sh")], env=environment, check=True, capture_output=True, timeout=240)


def restart_kubelet(home: Path) -> None:
    """End the kubelet as a crash does, and start it again."""
    pid = home / "run" / "kubelet.pid"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    pid.unlink()
    environment = os.environ | {"KUBE_HOME": str(home)}
    subprocess.run([str(CLUSTER_SCRIPTS / "up.sh")], env=environment, check=True, capture_output=True, timeout=240)
