"""What all objects of the add-on have in common: names, labels, node selection, the least privileges of a pod."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from confcom.manifests.addon_config import LOCALHOST, RUNTIME_DEFAULT, AddonConfig
from confcom.protocols import aesm, epc

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as its JSON."""

NAMESPACE = "confcom-system"
ADDON = "confcom"
MANAGER = "confcom-addon"
"""The field manager, and the value of the label that says who made an object."""

PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
VERSION = "app.kubernetes.io/version"
OURS = {PART_OF: ADDON, MANAGED_BY: MANAGER}
"""The labels by which everything of the add-on is found."""

EPC_RESOURCE = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
ENCLAVE_RESOURCE = "sgx.intel.com/enclave"
PROVISION_RESOURCE = "sgx.intel.com/provision"
HELPER_RESOURCE = aesm.RESOURCE
HELPER_EPC = epc.HELPER_EPC

OWN_NODE_LABEL = "confcom.dev/sgx"
SGX_NODE_LABELS = (
    OWN_NODE_LABEL,
    "feature.node.kubernetes.io/cpu-security.sgx.enabled",
    "intel.feature.node.kubernetes.io/sgx",
)
"""A node with any of these at `true` is an SGX node: our own label, and those of node feature discovery."""

NODE_CRITICAL, CLUSTER_CRITICAL = CRITICAL = ("system-node-critical", "system-cluster-critical")
"""Priorities above all that users can make. What serves a node has the first, what serves the cluster the second."""

USER = 65532
"""The user and group of the image."""
TMP = "/tmp"  # noqa: S108 - the path in a container, where an empty folder in memory is mounted

# Taints by which clusters keep SGX nodes for those who use SGX. The plugin is what makes them usable at all.
_TOLERATED_KEYS = (EPC_RESOURCE, OWN_NODE_LABEL, "sgx.intel.com/epc", "alibabacloud.com/sgx_epc_MiB")


class Workload(NamedTuple):
    """A component and the name of its objects."""

    component: str
    name: str


DEVICE_PLUGIN = Workload("device-plugin", "sgx-device-plugin")
QUOTE_HELPER = Workload("quote-helper", "sgx-quote-helper")
WEBHOOK = Workload("webhook", "sgx-webhook")
COLLATERAL = Workload("collateral", "confcom-collateral")
METRICS = Workload("metrics", "sgx-metrics")
ITSELF = Workload("addon", "confcom-addon")


def labels(component: str) -> dict[str, str]:
    """The labels of every object of a component."""
    return {PART_OF: ADDON, MANAGED_BY: MANAGER, COMPONENT: component}


def selector(component: str) -> dict[str, str]:
    """What finds a component's pods; it can never be changed, so it says as little as possible."""
    return {PART_OF: ADDON, COMPONENT: component}


def global_object(api_version: str, kind: str, name: str, component: str, **body: Any) -> Object:  # noqa: ANN401 - JSON
    """An object of the whole cluster."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "labels": labels(component)},
        **body,
    }


def namespaced_object(api_version: str, kind: str, name: str, component: str, **body: Any) -> Object:  # noqa: ANN401 - JSON
    """An object in the add-on's namespace."""
    found = global_object(api_version, kind, name, component, **body)
    found["metadata"]["namespace"] = NAMESPACE
    return found


def service_account(workload: Workload, *, token: bool) -> Object:
    """The account of a component; most have no use for a token and are given none."""
    return namespaced_object(
        "v1", "ServiceAccount", workload.name, workload.component, automountServiceAccountToken=token
    )


def sgx_nodes(config: AddonConfig) -> Object:
    """The affinity to SGX nodes, whoever labelled them."""
    always = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"} | config.node_labels()
    common = [{"key": key, "operator": "In", "values": [value]} for key, value in always.items()]
    terms = [
        {"matchExpressions": [{"key": label, "operator": "In", "values": ["true"]}, *common]}
        for label in SGX_NODE_LABELS
    ]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def tolerations(config: AddonConfig) -> list[Object]:
    """What the node components tolerate: taints that set SGX nodes apart, and what the operator names."""
    usual: list[Object] = [{"key": key, "operator": "Exists"} for key in _TOLERATED_KEYS]
    return [*usual, {"key": "CriticalAddonsOnly", "operator": "Exists"}, *config.tolerated()]


def seccomp(profile: str) -> Object:
    """A seccomp profile, `runtime/default` or `localhost/PATH`, as a security context has it."""
    if profile.startswith(LOCALHOST):
        return {"type": "Localhost", "localhostProfile": profile.removeprefix(LOCALHOST)}
    return {"type": "RuntimeDefault"}


def confined(*, user: int = USER, add: tuple[str, ...] = (), profile: str = RUNTIME_DEFAULT) -> Object:
    """A container's security context: no capability but those in `add`, nothing to write to, no way to more."""
    capabilities: Object = {"drop": ["ALL"]} | ({"add": list(add)} if add else {})
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": capabilities,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": user,
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "seccompProfile": seccomp(profile),
    }


def container(config: AddonConfig, name: str, args: list[str], **body: Any) -> Object:  # noqa: ANN401 - JSON
    """A container that runs `confcom` with these words."""
    return {
        "name": name,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": args,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **body,
    }


def settings(service: str, values: dict[str, str]) -> list[Object]:
    """A service's settings as environment: `CONFCOM_<SERVICE>_<FIELD>`."""
    prefix = f"CONFCOM_{service.upper().replace('-', '_')}_"
    return [{"name": f"{prefix}{field.upper()}", "value": value} for field, value in values.items()]


def from_pod(variable: str, path: str) -> Object:
    """An environment variable with something that the pod knows of itself."""
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def resources(cpu: str, memory: str, memory_limit: str, **devices: str) -> Object:
    """Requests and limits. No limit of CPU: throttling would make everybody who waits for an answer wait longer."""
    return {
        "requests": {"cpu": cpu, "memory": memory, **devices},
        "limits": {"memory": memory_limit, **devices},
    }


def http_probes(port: str, *, tls: bool = False) -> Object:
    """Probes at /healthz and /readyz of a port; whoever starts has two minutes. The kubelet takes any certificate."""
    scheme = {"scheme": "HTTPS"} if tls else {}
    live = {"path": "/healthz", "port": port, **scheme}
    return {
        "startupProbe": {"httpGet": live, "periodSeconds": 2, "failureThreshold": 60, "timeoutSeconds": 5},
        "livenessProbe": {"httpGet": live, "periodSeconds": 20, "failureThreshold": 3, "timeoutSeconds": 5},
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": port, **scheme},
            "periodSeconds": 5,
            "failureThreshold": 3,
            "timeoutSeconds": 5,
        },
    }


def number(value: float) -> str:
    """A number as people and other tools write it: 1 and 1.5."""
    return str(int(value)) if value.is_integer() else repr(value)


def host_path(name: str, path: str, kind: str) -> Object:
    """A volume that is a path of the host."""
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def mount(name: str, path: str, *, read_only: bool = False) -> Object:
    """Where a volume is seen in a container; read-only with what is mounted below it, where the runtime can do that."""
    found: Object = {"name": name, "mountPath": path}
    return found | ({"readOnly": True, "recursiveReadOnly": "IfPossible"} if read_only else {})


def asks_by_name(config: AddonConfig) -> Object:
    """What a pod needs that asks for collateral by the names of the cluster; the others do without its DNS."""
    return {} if config.platform == "simulated" else {"dnsPolicy": "ClusterFirst"}


def tmp_volume() -> Object:
    """A small folder for temporary files, where the root file system cannot be written."""
    return {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}


def daemon_set(workload: Workload, config: AddonConfig, pod: Object, strategy: Object) -> Object:
    """A component on every SGX node."""
    spec = {
        "serviceAccountName": workload.name,
        "affinity": sgx_nodes(config),
        "tolerations": tolerations(config),
        "dnsPolicy": "Default",
        "enableServiceLinks": False,
        **pod,
    }
    return namespaced_object(
        "apps/v1",
        "DaemonSet",
        workload.name,
        workload.component,
        spec={
            "selector": {"matchLabels": selector(workload.component)},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "minReadySeconds": 2,
            "revisionHistoryLimit": 3,
            "template": pod_template(workload, spec),
        },
    )


def deployment(workload: Workload, pod: Object, *, replicas: int) -> Object:
    """A component of the cluster, on any node; its pods on different ones where that is possible."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(workload.component)},
    }
    spec = {
        "serviceAccountName": workload.name,
        "nodeSelector": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "topologySpreadConstraints": [spread],
        "dnsPolicy": "Default",
        "enableServiceLinks": False,
        **pod,
    }
    return namespaced_object(
        "apps/v1",
        "Deployment",
        workload.name,
        workload.component,
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": selector(workload.component)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 3,
            "template": pod_template(workload, spec),
        },
    )


def service(workload: Workload, port: int, target: str) -> Object:
    """The address of a component: a port, and the name of the pods' port behind it."""
    return namespaced_object(
        "v1",
        "Service",
        workload.name,
        workload.component,
        spec={
            "selector": selector(workload.component),
            "ports": [{"name": target, "port": port, "targetPort": target, "protocol": "TCP"}],
        },
    )


def completed(objects: Iterable[Object], config: AddonConfig, version: str) -> list[Object]:
    """Objects with what all of them have: the version as a label, and in pods the Secrets to pull the image with."""
    found = []
    for one in objects:
        metadata = one["metadata"]
        labelled = metadata["labels"] | {VERSION: version.replace("+", "_")[:63]}
        found.append(one | {"metadata": metadata | {"labels": labelled}})
        if config.image_pull_secrets and one["kind"] in ("DaemonSet", "Deployment"):
            secrets = [{"name": name} for name in config.image_pull_secrets]
            one["spec"]["template"]["spec"]["imagePullSecrets"] = secrets
    return found


def pod_template(workload: Workload, spec: Object) -> Object:
    """The pod of a component."""
    return {"metadata": {"labels": labels(workload.component)}, "spec": spec}
