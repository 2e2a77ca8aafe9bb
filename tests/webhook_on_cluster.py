"""The webhook by itself on a test cluster: for the pods of one namespace, with settings that make its life short."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from confcom.pki.serving_pair import Authority
from confcom.protocols.admission import ServiceClient, mutating_webhooks, validating_webhooks
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
    "PROVISION_GRANTS": f"{NAMESPACE}/granted",
    "OVERSIZED": "warn",
    "LIFETIME": "20",
    "LOOK_EVERY": "1",
    "LEAVE_AFTER": "5",
}
"""A certificate is replaced every 10 seconds."""
CA_SECRET = "webhook-ca"
CHANGES = "confcom_webhook_certificate_changes_total"

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
        first = new_ca()
        self.cluster.apply(*_rights(), secret_of(first), _service(), self._deployment())
        self.trust(first)
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

    def trust(self, *authorities: Authority | bytes) -> None:
        """Have the API server trust these, and no others."""
        texts = [one.certificate if isinstance(one, Authority) else one for one in authorities]
        self.cluster.apply(*_configurations(b"".join(texts)))

    def held(self) -> list[bytes]:
        """The CA's certificate as each replica sees it."""
        words = ("-n", HOME, "--", "cat", "/etc/confcom/webhook-ca/tls.crt")
        return [self.cluster("exec", name, *words).encode() for name in self._names()]

    def _names(self) -> list[str]:
        words = ("pods", "-n", HOME, "-l", f"app={NAME}")
        return sorted(pod["metadata"]["name"] for pod in self.cluster.items(*words))

    def hold(self, authority: Authority) -> None:
        """Have replicas issue their certificates by this one, as soon as the kubelet brings it."""
        self.cluster.apply(secret_of(authority))

    def certificates(self) -> list[int]:
        """How many certificates each replica has served."""
        place = f"/api/v1/namespaces/{HOME}/pods"
        pages = [self.cluster("get", "--raw", f"{place}/{name}:9464/proxy/metrics") for name in self._names()]
        return [int(float(found)) for page in pages for found in re.findall(rf"(?m)^{CHANGES} (\S+)$", page)]

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
        container["volumeMounts"] = [{"name": "ca", "mountPath": "/etc/confcom/webhook-ca"}]
        volume = {"name": "ca", "secret": {"secretName": CA_SECRET, "defaultMode": 0o444}}
        pod = {"serviceAccountName": NAME, "containers": [container], "volumes": [volume]}
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


def new_ca() -> Authority:
    """As an installer makes it, for the Service here."""
    names = (f"{NAME}.{HOME}.svc", f"{NAME}.{HOME}.svc.cluster.local")
    return Authority.make("e2e", now=datetime.fromtimestamp(time.time(), UTC), lifetime=timedelta(days=1), names=names)


def secret_of(authority: Authority) -> Object:
    """The Secret that is mounted."""
    files = {"tls.crt": authority.certificate, "tls.key": authority.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": CA_SECRET, "namespace": HOME},
        "type": "kubernetes.io/tls",
        "data": {name: b64encode(content).decode() for name, content in files.items()},
    }


def _configurations(bundle: bytes) -> list[Object]:
    found = []
    for kind, entries in (("Mutating", mutating_webhooks), ("Validating", validating_webhooks)):
        webhooks = entries(ServiceClient(namespace=HOME, name=NAME), ca_bundle=bundle)
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
    rules = {"ClusterRole": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]}
    found: list[Object] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": HOME}}
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
