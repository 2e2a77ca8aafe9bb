"""Which pods the API server asks the admission webhook about: the entries of its two configurations, as data; pure.

The conditions are evaluated by the API server itself. A pod that does not meet them is never sent, so it is created as
if there were no webhook, whether that is up, slow or gone.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from confcom.protocols import aesm_access
from confcom.protocols.epc_requests import EPC_UNITS

ENCLAVE = "sgx.intel.com/enclave"
"""The resource that brings a container the enclave device."""
PROVISION = "sgx.intel.com/provision"
"""The resource that brings a container the provisioning device."""
HELPER = aesm_access.RESOURCE
"""The resource that brings a container to the quote helper."""
SGX_RESOURCES = (*EPC_UNITS, ENCLAVE, PROVISION, HELPER)

IN_EVERY_NAME = "sgx"
"""What all of them have in common, which is quicker to look for than each of them."""

MODE_ANNOTATION = "confcom.dev/quote-mode"
"""How the pod's SGX containers get their quotes: `out-of-proc` or `in-proc`."""
CONTAINER_MODE_PREFIX = "quote-mode.confcom.dev/"
"""The same for the container whose name follows."""
INTEL_ANNOTATION = "sgx.intel.com/quote-provider"
"""`aesmd`, or the name of the container that makes its quotes itself."""
AESM_VARIABLE = aesm_access.VARIABLE
"""Environment variable whose presence makes Intel's library ask AESM for quotes."""

LABEL, LABEL_VALUE = "confcom.dev/uses-sgx", "true"
"""What the mutating webhook puts on each SGX pod, by which the validating one is asked about those alone."""

NAMESPACE_LABEL = "confcom.dev/sgx"
"""Of namespaces, at `true`: those whose pods the webhook is for, where it is not for all."""

CONFIGURATION = "sgx-webhook.confcom.dev"
"""Name of the MutatingWebhookConfiguration, and of the ValidatingWebhookConfiguration."""
NAMESPACE = "confcom-system"
SERVICE = "sgx-webhook"
MUTATE_PATH = "/mutate-pods"
VALIDATE_PATH = "/validate-pods"
TIMEOUT = 5
"""Seconds that the API server waits for an answer."""

Entry = dict[str, Any]
"""An element of `webhooks` of a configuration, as its JSON."""


@dataclass(frozen=True, slots=True)
class ServiceClient:
    """The webhook behind a Service."""

    namespace: str = NAMESPACE
    name: str = SERVICE
    port: int = 443

    def config(self, path: str) -> Entry:
        """How the API server reaches a path."""
        return {"service": {"namespace": self.namespace, "name": self.name, "port": self.port, "path": path}}


@dataclass(frozen=True, slots=True)
class UrlClient:
    """The webhook outside the cluster; `base` is https://HOST:PORT."""

    base: str

    def config(self, path: str) -> Entry:
        """How the API server reaches a path."""
        return {"url": f"{self.base}{path}"}


def mutating_webhooks(
    client: ServiceClient | UrlClient, *, ca_bundle: bytes | None = None, labelled: bool = False
) -> list[Entry]:
    """Entries of the MutatingWebhookConfiguration. `ca_bundle` (PEM): the CAs that the API server trusts.

    `labelled` restricts them to namespaces that have the label.
    """
    entries = _entries(client.config(MUTATE_PATH), ca_bundle, labelled=labelled)
    # Others may add resources or annotations after us.
    return [entry | {"reinvocationPolicy": "IfNeeded"} for entry in entries]


def validating_webhooks(
    client: ServiceClient | UrlClient, *, ca_bundle: bytes | None = None, labelled: bool = False
) -> list[Entry]:
    """Entries of the ValidatingWebhookConfiguration, which sees what every mutation has made of a pod.

    The API server makes a pod readable for CEL anew for each webhook, which is all that ordinary pods ever pay. Here it
    need not: a label is looked at first, and without ours, nothing more.
    """
    pods, debug = _entries(client.config(VALIDATE_PATH), ca_bundle, labelled=labelled)
    return [pods | {"objectSelector": {"matchLabels": {LABEL: LABEL_VALUE}}}, debug]


def _entries(client: Entry, ca_bundle: bytes | None, *, labelled: bool) -> list[Entry]:
    if ca_bundle is not None:
        client = client | {"caBundle": b64encode(ca_bundle).decode()}
    namespaces = [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}]
    if labelled:
        namespaces.append({"key": NAMESPACE_LABEL, "operator": "In", "values": ["true"]})
    return [
        _entry(name, client, operation, resource, condition)
        | {"namespaceSelector": {"matchExpressions": [*namespaces]}}
        for name, operation, resource, condition in (
            ("pods", "CREATE", "pods", POD_CONDITION),
            ("debug", "UPDATE", "pods/ephemeralcontainers", DEBUG_CONDITION),
        )
    ]


def _entry(name: str, client: Entry, operation: str, resource: str, condition: str) -> Entry:
    return {
        "name": f"{name}.{CONFIGURATION}",
        "admissionReviewVersions": ["v1"],
        "clientConfig": client,
        # An SGX pod that nobody could complete had better not exist: it would run without its device.
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT,
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": [operation],
                "resources": [resource],
                "scope": "Namespaced",
            }
        ],
        "matchConditions": [{"name": "uses-sgx", "expression": condition}],
    }


def _any(holder: str, field: str, variable: str, condition: str) -> str:
    """Whether a list or a map's keys, which may be missing, hold something that meets the condition."""
    return f"(has({holder}.{field}) && {holder}.{field}.exists({variable}, {condition}))"


def _has_resource(container: str) -> str:
    # Limits are enough: Kubernetes refuses a request without one.
    limits = _any(f"{container}.resources", "limits", "name", f'name.contains("{IN_EVERY_NAME}")')
    return f"(has({container}.resources) && {limits})"


def _has_variable(container: str) -> str:
    return _any(container, "env", "variable", f'variable.name == "{AESM_VARIABLE}"')


def _in_containers(condition: str) -> str:
    containers, init = (_any("object.spec", kind, "c", condition) for kind in ("containers", "initContainers"))
    return f"{containers} || {init}"


def _pod_condition() -> str:
    names = " || ".join(f'key == "{name}"' for name in (MODE_ANNOTATION, INTEL_ANNOTATION))
    annotated = f'{names} || key.startsWith("{CONTAINER_MODE_PREFIX}")'
    # Variables are many, and looking at each of them costs more than all the rest together: it is worth it only where
    # there may be SGX devices by another way than resources.
    claimed = f"(has(object.spec.resourceClaims) && ({_in_containers(_has_variable('c'))}))"
    by_annotation = _any("object.metadata", "annotations", "key", annotated)
    return f"{by_annotation} || {_in_containers(_has_resource('c'))} || {claimed}"


def _debug_condition() -> str:
    named = f'(has(object.metadata.annotations) && ("{CONTAINER_MODE_PREFIX}" + c.name) in object.metadata.annotations)'
    return _any("object.spec", "ephemeralContainers", "c", f"{_has_resource('c')} || {_has_variable('c')} || {named}")


POD_CONDITION = _pod_condition()
"""CEL: a pod with SGX resources, with one of the annotations, or with resource claims and the variable."""
DEBUG_CONDITION = _debug_condition()
"""CEL: an ephemeral container with SGX resources, with the variable, or with an annotation of its own."""
