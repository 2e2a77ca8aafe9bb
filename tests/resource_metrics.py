"""Kubernetes' own metrics-server on the test cluster: CPU and memory of pods, for ordinary autoscaling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from derived_image import image_of_program
from kubectl import Kubectl

NAME, NAMESPACE = "metrics-server", "kube-system"
IMAGE = "localhost/metrics-server:e2e"
_GROUP = "rbac.authorization.k8s.io"
_WORDS = (
    "--secure-port=10250",
    "--cert-dir=/tmp",
    "--kubelet-insecure-tls",
    "--kubelet-preferred-address-types=InternalIP",
    "--kubelet-use-node-status-port",
    "--metric-resolution=10s",
    "--kubelet-request-timeout=9s",
)


@contextmanager
def resource_metrics(cluster: Kubectl, home: Path) -> Iterator[None]:
    """Run it until the API serves `metrics.k8s.io`, and take it away afterwards."""
    with tempfile.TemporaryDirectory() as work:
        image_of_program(home, Path(work), IMAGE, "metrics-server")
    objects = _objects()
    cluster.apply(*objects)
    try:
        cluster.wait("metrics of the node", lambda: _node_metrics(cluster))
        yield
    finally:
        # The API service first: without its server every deletion of a namespace would wait for it.
        for thing in reversed(objects):
            where = ("-n", thing["metadata"]["namespace"]) if "namespace" in thing["metadata"] else ()
            cluster("delete", f"{thing['kind'].lower()}/{thing['metadata']['name']}", *where, "--ignore-not-found")


def _node_metrics(cluster: Kubectl) -> bool:
    return '"usage"' in cluster.attempt("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes").out


def _objects() -> list[dict[str, Any]]:
    container = {
        "name": NAME,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": list(_WORDS),
        "ports": [{"name": "https", "containerPort": 10250}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "https", "scheme": "HTTPS"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {"serviceAccountName": NAME, "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    labels = {"k8s-app": NAME}
    deployment = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    rules = [
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
    ]
    service = {"selector": labels, "ports": [{"port": 443, "targetPort": "https"}]}
    api = {
        "group": "metrics.k8s.io",
        "version": "v1beta1",
        "service": {"name": NAME, "namespace": NAMESPACE},
        "insecureSkipTLSVerify": True,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    roles = {"kind": "ClusterRole", "name": f"system:{NAME}"}
    delegator = {"kind": "ClusterRole", "name": "system:auth-delegator"}
    reader = {"kind": "Role", "name": "extension-apiserver-authentication-reader"}
    return [
        _object("v1", "ServiceAccount", NAME, NAMESPACE),
        _object(f"{_GROUP}/v1", "ClusterRole", f"system:{NAME}", rules=rules),
        _binding("ClusterRoleBinding", f"system:{NAME}", roles),
        _binding("ClusterRoleBinding", f"{NAME}:delegator", delegator),
        _binding("RoleBinding", f"{NAME}-reader", reader, NAMESPACE),
        _object("v1", "Service", NAME, NAMESPACE, spec=service),
        _object("apps/v1", "Deployment", NAME, NAMESPACE, spec=deployment),
        _object("apiregistration.k8s.io/v1", "APIService", "v1beta1.metrics.k8s.io", spec=api),
    ]


def _binding(kind: str, name: str, role: dict[str, str], namespace: str = "") -> dict[str, Any]:
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    return _object(f"{_GROUP}/v1", kind, name, namespace, roleRef={"apiGroup": _GROUP} | role, subjects=subjects)


def _object(version: str, kind: str, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}
