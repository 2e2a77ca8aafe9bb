"""The webhook by itself on a test cluster: for the pods of one namespace, with settings that make its life short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confcom.protocols.admission_rules import ServiceClient, mutating_webhooks, validating_webhooks
from kubectl import Kubectl

ADMISSION = "admissionregistration.k8s.io"
CONFIGURATION = "e2e-webhook.confcom.dev"
HOME = "e2e-webhook"
"""Where it runs."""
NAMESPACE = "e2e-admission"
"""Whose pods it is asked about."""
NAME = "sgx-webhook"
REPLICAS = 2
SETTINGS = {
    "NAMESPACE": HOME,
    "CONFIGURATION": CONFIGURATION,
    "PROVISION_GRANTS": f"{NAMESPACE}/granted",
    "OVERSIZED": "warn",
    "LIFETIME": "120",
    "RENEW_BEFORE": "100",
    "OVERLAP": "8",
    "LOOK_EVERY": "1",
    "LEAVE_AFTER": "5",
}
"""A certificate is replaced about every 20 seconds."""

Object = dict[str, Any]


@dataclass(frozen=True)
class WebhookOnCluster:
    """Its objects, and what can be done with them."""

    cluster: Kubectl
    image: str

    def prepare(self) -> None:
        """Everything but pods: who asks it now gets no answer."""
        self.remove()
        for namespace in (HOME, NAMESPACE):
            self.cluster("create", "namespace", namespace)
        self.cluster.apply(*_rights(), _service(), *_configurations(), self._deployment())
        words = ("serviceaccount", "default", "-n", NAMESPACE)
        self.cluster.wait("the namespace's service account", lambda: self.cluster.find(*words))

    def start(self) -> None:
        """Two replicas, ready."""
        self.cluster("scale", f"deployment/{NAME}", "-n", HOME, f"--replicas={REPLICAS}")
        self.cluster("rollout", "status", f"deployment/{NAME}", "-n", HOME, "--timeout=120s", seconds=130)

    def restart(self) -> None:
        """New pods for old ones, one after the other."""
        self.cluster("rollout", "restart", f"deployment/{NAME}", "-n", HOME)
        self.cluster("rollout", "status", f"deployment/{NAME}", "-n", HOME, "--timeout=180s", seconds=190)

    def certificate(self) -> str:
        """The one in use."""
        data = self.cluster.get("secret", "sgx-webhook-tls", "-n", HOME).get("data") or {}
        return str(data.get("tls.crt", ""))

    def bundles(self) -> set[str]:
        """What the two configurations trust."""
        kinds = (f"mutatingwebhookconfiguration.{ADMISSION}", f"validatingwebhookconfiguration.{ADMISSION}")
        found = [self.cluster.get(kind, CONFIGURATION) for kind in kinds]
        return {entry["clientConfig"].get("caBundle", "") for one in found for entry in one["webhooks"]}

    def remove(self) -> None:
        """Leave nothing behind."""
        kinds = f"mutatingwebhookconfigurations.{ADMISSION},validatingwebhookconfigurations.{ADMISSION}"
        self.cluster("delete", kinds, CONFIGURATION, "--ignore-not-found")
        self.cluster("delete", "clusterrole,clusterrolebinding", HOME, "--ignore-not-found")
        self.cluster("delete", "namespace", HOME, NAMESPACE, "--ignore-not-found", "--wait")

    def _deployment(self) -> Object:
        probe = {"httpGet": {"path": "/readyz", "port": 9464}, "periodSeconds": 1, "failureThreshold": 1}
        container = {
            "name": "webhook",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "args": ["webhook"],
            "env": [{"name": f"CONFCOM_WEBHOOK_{name}", "value": value} for name, value in SETTINGS.items()],
            "readinessProbe": probe,
            "securityContext": {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "runAsUser": 65532,
            },
        }
        pod = {"serviceAccountName": NAME, "containers": [container], "terminationGracePeriodSeconds": 30}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": HOME},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": NAME}},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": {"app": NAME}}, "spec": pod},
            },
        }


def _service() -> Object:
    ports = [{"port": 443, "targetPort": 8443}]
    metadata = {"name": NAME, "namespace": HOME}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": {"app": NAME}, "ports": ports},
    }


def _configurations() -> list[Object]:
    found = []
    for kind, entries in (("Mutating", mutating_webhooks), ("Validating", validating_webhooks)):
        webhooks = entries(ServiceClient(namespace=HOME, name=NAME))
        for webhook in webhooks:
            webhook["name"] = f"{webhook['name'].partition('.')[0]}.{CONFIGURATION}"
            # Others use the cluster too.
            only = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [NAMESPACE]}
            webhook["namespaceSelector"]["matchExpressions"].append(only)
        found.append(
            {
                "apiVersion": f"{ADMISSION}/v1",
                "kind": f"{kind}WebhookConfiguration",
                "metadata": {"name": CONFIGURATION},
                "webhooks": webhooks,
            }
        )
    return found


def _rights() -> list[Object]:
    """As narrow as those that the add-on gives it."""
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": HOME}
    rbac = "rbac.authorization.k8s.io"
    kinds = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
    secret = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "update", "patch"]}
    wide = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [ADMISSION], "resources": kinds, "verbs": ["get", "patch"], "resourceNames": [CONFIGURATION]},
    ]
    rules = {"Role": [secret | {"resourceNames": ["sgx-webhook-tls"]}], "ClusterRole": wide}
    found: list[Object] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": HOME}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sgx-webhook-tls", "namespace": HOME}},
    ]
    for kind, allowed in rules.items():
        metadata = {"name": HOME} | ({"namespace": HOME} if kind == "Role" else {})
        role = {"apiGroup": rbac, "kind": kind, "name": HOME}
        found += [
            {"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": metadata, "rules": allowed},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": role,
                "subjects": [subject],
            },
        ]
    return found
