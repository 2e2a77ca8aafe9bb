"""What objects of the add-on have in common: names, labels, node selection, privileges, roles, network policies."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from confcom.manifests.addon_config import LOCALHOST, RUNTIME_DEFAULT, AddonConfig
from confcom.protocols import epc

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
OURS: dict[str, str | tuple[str, ...]] = {PART_OF: ADDON, MANAGED_BY: (MANAGER, "Helm")}
"""The labels by which every object of the add-on is found. Helm labels what it installs with its own name."""

OWN_NODE_LABEL = "confcom.dev/sgx"
SGX_NODE_LABELS = (
    OWN_NODE_LABEL,
    "feature.node.kubernetes.io/cpu-security.sgx.enabled",
    "intel.feature.node.kubernetes.io/sgx",
)
"""A node with any of these at `true` is an SGX node: our own label, and those of node feature discovery."""

NODE_CRITICAL, CLUSTER_CRITICAL = CRITICAL = ("system-node-critical", "system-cluster-critical")
"""Priorities above all that users can make. What serves a node has the first, what serves the cluster the second."""

ANY_NODE = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
USER = 65532
"""The user and group of the image."""
TMP = "/tmp"  # noqa: S108 - the path in a container, where an empty folder in memory is mounted

# Taints by which clusters keep SGX nodes for pods that use SGX.
_CRITICAL_ONLY: Object = {"key": "CriticalAddonsOnly", "operator": "Exists"}
_TOLERATED_KEYS = (epc.CANONICAL, OWN_NODE_LABEL, "sgx.intel.com/epc", "alibabacloud.com/sgx_epc_MiB")


class Workload(NamedTuple):
    """A component and the name of its objects."""

    component: str
    name: str


DEVICE_PLUGIN = Workload("device-plugin", "sgx-device-plugin")
QUOTE_HELPER = Workload("quote-helper", "sgx-quote-helper")
WEBHOOK = Workload("webhook", "sgx-webhook")
COLLATERAL = Workload("collateral", "confcom-collateral")
METRICS = Workload("metrics", "sgx-metrics")
METRICS_API = Workload("metrics-api", "confcom-metrics-api")
ITSELF = Workload("addon", "confcom-addon")
CLEANUP = Workload(ITSELF.component, "confcom-cleanup")


def labels(component: str) -> dict[str, str]:
    """The labels of every object of a component."""
    return {PART_OF: ADDON, MANAGED_BY: MANAGER, COMPONENT: component}


def selector(component: str) -> dict[str, str]:
    """Labels that select a component's pods. A selector is immutable, so it has as few as possible."""
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
    """The account of a component; `token`: whether its pods get one for the API."""
    return namespaced_object(
        "v1", "ServiceAccount", workload.name, workload.component, automountServiceAccountToken=token
    )


def sgx_nodes(config: AddonConfig) -> Object:
    """The affinity to SGX nodes: those with any of `SGX_NODE_LABELS`."""
    always = ANY_NODE | config.node_labels()
    common = [{"key": key, "operator": "In", "values": [value]} for key, value in always.items()]
    terms = [
        {"matchExpressions": [{"key": label, "operator": "In", "values": ["true"]}, *common]}
        for label in SGX_NODE_LABELS
    ]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def tolerations(config: AddonConfig) -> list[Object]:
    """Taints that the node components tolerate: those that usually set SGX nodes apart, and those of the settings."""
    usual: list[Object] = [{"key": key, "operator": "Exists"} for key in _TOLERATED_KEYS]
    return [_CRITICAL_ONLY, *usual, *config.tolerated()]


def confined(*, user: int = USER, add: tuple[str, ...] = (), profile: str = RUNTIME_DEFAULT) -> Object:
    """A container's security context: only the capabilities in `add`, a read-only root file system, no escalation.

    `profile` is of seccomp: `runtime/default` or `localhost/PATH`.
    """
    capabilities: Object = {"drop": ["ALL"]} | ({"add": list(add)} if add else {})
    seccomp = {"type": "RuntimeDefault"}
    if profile.startswith(LOCALHOST):
        seccomp = {"type": "Localhost", "localhostProfile": profile.removeprefix(LOCALHOST)}
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": capabilities,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": user,
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "seccompProfile": seccomp,
    }


def container(config: AddonConfig, name: str, args: list[str], **body: Any) -> Object:  # noqa: ANN401 - JSON
    """A container of the add-on's image; its entry point is `confcom`."""
    return {
        "name": name,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": args,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **body,
    }


def environment(daemon: str, values: Mapping[str, str]) -> list[Object]:
    """A daemon's settings as environment: `CONFCOM_<DAEMON>_<FIELD>`."""
    prefix = f"CONFCOM_{daemon.upper().replace('-', '_')}_"
    return [{"name": f"{prefix}{field.upper()}", "value": value} for field, value in values.items()]


def from_pod(variable: str, path: str) -> Object:
    """An environment variable with a field of the pod."""
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def resources(cpu: str, memory: str, memory_limit: str, **devices: str) -> Object:
    """Requests and limits. No limit of CPU: throttling would delay every client."""
    return {
        "requests": {"cpu": cpu, "memory": memory, **devices},
        "limits": {"memory": memory_limit, **devices},
    }


def task(config: AddonConfig, name: str, args: list[str], mounts: list[Object], **body: Any) -> Object:  # noqa: ANN401 - JSON
    """A small container that ends: that of a Job, or one that prepares something for a component's container."""
    usual = {"resources": resources("10m", "64Mi", "256Mi"), "securityContext": confined(), "volumeMounts": mounts}
    return container(config, name, args, **usual | body)


def _probes(port: str, **scheme: str) -> Object:
    """At /healthz and /readyz of a port; a start may take two minutes. The kubelet accepts any certificate."""

    def probe(path: str, period: int, failures: int) -> Object:
        asked = {"path": path, "port": port, **scheme}
        return {"httpGet": asked, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5}

    return {
        "startupProbe": probe("/healthz", 2, 60),
        "livenessProbe": probe("/healthz", 20, 3),
        "readinessProbe": probe("/readyz", 5, 3),
    }


def number(value: float) -> str:
    """A number without a needless fraction: 1 and 1.5."""
    return str(int(value)) if value.is_integer() else repr(value)


Mounted: TypeAlias = tuple[Object, list[Object]]
"""A volume, and its mounts in the main container."""


def mount(name: str, path: str, *, read_only: bool = False) -> Object:
    """A mount of a volume; `read_only` includes what is mounted below it, where the runtime can do that."""
    found: Object = {"name": name, "mountPath": path}
    return found | ({"readOnly": True, "recursiveReadOnly": "IfPossible"} if read_only else {})


def volume(name: str, at: str, *, read_only: bool = True, **source: Any) -> Mounted:  # noqa: ANN401 - JSON
    """A volume, mounted at one place."""
    return {"name": name, **source}, [mount(name, at, read_only=read_only)]


def host_path(name: str, path: str, kind: str = "Directory", *, at: str = "", read_only: bool = True) -> Mounted:
    """A path of the host; `at` is the mount path, by default the same."""
    return volume(name, at or path, read_only=read_only, hostPath={"path": path, "type": kind})


def secret_volume(name: str, secret: str, at: str, **more: Any) -> Mounted:  # noqa: ANN401 - JSON
    """A Secret's files, readable by the group of the pod."""
    return volume(name, at, secret={"secretName": secret, "defaultMode": 0o440, **more})


def memory_folder(name: str, size: str) -> Object:
    """An empty folder in memory."""
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": size}}


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component: its pods, what they may reach and what may reach them, and its rights at the Kubernetes API."""

    workload: Workload
    replicas: int | None = None
    """Pods of a Deployment, on any node. Without a number: a DaemonSet, on every SGX node."""
    recreated: bool = False
    """A successor waits until its predecessor has ended."""
    args: tuple[str, ...] = ()
    """Of the program; by default the name of the component."""
    daemon: str = ""
    """The daemon that reads the settings; by default it has the name of the component."""
    settings: Mapping[str, str]
    """Settings of the daemon by field, beside the addresses of its ports."""
    env: Sequence[Object] = ()
    """Further environment variables."""
    ports: Mapping[str, int]
    """Where it listens, by name: a name of `_LISTENS`. Probes ask `http`, or `https` where there is no `http`."""
    requests: Object
    """Requests and limits of its container."""
    volumes: Sequence[Mounted] = ()
    """Volumes beside /tmp."""
    security: Object | None = None
    """The security context of its container; None: `confined()`."""
    init: Sequence[Object] = ()
    """Containers that prepare something for it."""
    pod: Object = field(default_factory=dict)
    """Further fields of its pods."""
    called: str = ""
    """The port that the API server alone reaches, if the settings have its addresses."""
    service_port: int | None = None
    """The port of its Service, which leads to `https`."""
    egress: tuple[int, ...] = ()
    """TCP ports that it may reach, beside those of the Kubernetes API."""
    rules: Sequence[Object] = ()
    """What it may do in the add-on's namespace. Without any rule its pods get no token, and do not reach the API."""
    cluster_rules: Sequence[Object] = ()
    """What it may do in the whole cluster."""

    def objects(self, config: AddonConfig) -> list[Object]:
        """Every object of the component; the workload last, after what it uses."""
        workload, api = self.workload, config.api_ports if self._asks_api else ()
        called = [port for name, port in self.ports.items() if name == self.called]
        opened = [port for name, port in self.ports.items() if name != self.called]
        found = [
            network_policy(
                workload, ingress=opened, called=called, callers=config.api_addresses, egress=(*self.egress, *api)
            ),
            service_account(workload, token=self._asks_api),
            *_bound(namespaced_object, "Role", workload.name, workload, self.rules),
            *_bound(global_object, "ClusterRole", f"confcom:{workload.name}", workload, self.cluster_rules),
        ]
        if self.service_port is not None:
            found.append(self._service(self.service_port))
        if self.replicas is None:
            return [*found, daemon_set(workload, config, self._pod(config))]
        return [*found, self._disruption_budget(), self._deployment(config, self.replicas)]

    @property
    def _asks_api(self) -> bool:
        return bool(self.rules or self.cluster_rules)

    def _service(self, port: int) -> Object:
        spec = {
            "selector": selector(self.workload.component),
            "ports": [{"name": "https", "port": port, "targetPort": "https", "protocol": "TCP"}],
        }
        return namespaced_object("v1", "Service", self.workload.name, self.workload.component, spec=spec)

    def _disruption_budget(self) -> Object:
        """One pod at a time. Those that are not ready may always go, such as when no node is left for another one."""
        return namespaced_object(
            "policy/v1",
            "PodDisruptionBudget",
            self.workload.name,
            self.workload.component,
            spec={
                "maxUnavailable": 1,
                "selector": {"matchLabels": selector(self.workload.component)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        )

    def _pod(self, config: AddonConfig) -> Object:
        component, daemon = self.workload.component, self.daemon or self.workload.component
        listens = {_LISTENS[name]: f"[::]:{port}" for name, port in self.ports.items()}
        volumes = [(memory_folder("tmp", "16Mi"), [mount("tmp", TMP)]), *self.volumes]
        main = container(
            config,
            component,
            list(self.args or (component,)),
            env=[*environment(daemon, {**listens, **self.settings}), *self.env],
            ports=[{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in self.ports.items()],
            resources=self.requests,
            securityContext=self.security or confined(),
            volumeMounts=[place for _, mounts in volumes for place in mounts],
            **(_probes("http") if "http" in self.ports else _probes("https", scheme="HTTPS")),
        )
        return {
            "automountServiceAccountToken": self._asks_api,
            "dnsPolicy": dns_policy(self.egress),
            **({"initContainers": [*self.init]} if self.init else {}),
            "containers": [main],
            "volumes": [one for one, _ in volumes],
            **self.pod,
        }

    def _deployment(self, config: AddonConfig, replicas: int) -> Object:
        """The pods are on different nodes where that is possible."""
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(self.workload.component)},
        }
        spec = any_node(self.workload) | {"topologySpreadConstraints": [spread]} | self._pod(config)
        strategy = {"type": "Recreate"} if self.recreated else _ROLLING
        return _controller("Deployment", self.workload, spec, replicas=replicas, strategy=strategy)


_LISTENS = {"http": "http", "https": "listen", "tls": "https"}
"""Ports to the settings of their addresses: page without TLS; API or page over TLS; page for the metrics API."""
_ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def any_node(workload: Workload) -> Object:
    """What pods have that run on any node."""
    return {
        "serviceAccountName": workload.name,
        "priorityClassName": CLUSTER_CRITICAL,
        "securityContext": {"fsGroup": USER},
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": ANY_NODE,
        "tolerations": [_CRITICAL_ONLY],
        "enableServiceLinks": False,
    }


def daemon_set(workload: Workload, config: AddonConfig, pod: Object) -> Object:
    """A component on every SGX node. In an update each pod ends once its successor, started beside it, is ready."""
    spec = {
        "serviceAccountName": workload.name,
        "priorityClassName": NODE_CRITICAL,
        "affinity": sgx_nodes(config),
        "tolerations": tolerations(config),
        "enableServiceLinks": False,
        **pod,
    }
    return _controller("DaemonSet", workload, spec, updateStrategy=_ROLLING, minReadySeconds=2)


def _controller(kind: str, workload: Workload, pod: Object, **more: Any) -> Object:  # noqa: ANN401 - JSON
    spec = {
        "selector": {"matchLabels": selector(workload.component)},
        "revisionHistoryLimit": 3,
        "template": pod_template(workload, pod),
        **more,
    }
    return namespaced_object("apps/v1", kind, workload.name, workload.component, spec=spec)


def names_of(workload: Workload) -> tuple[str, str]:
    """DNS names of a component's Service in the cluster, the usual one first."""
    own = f"{workload.name}.{NAMESPACE}.svc"
    return own, f"{own}.cluster.local"


class IssuingCa(NamedTuple):
    """A CA by which replicas issue their certificates, and every CA that their clients are to trust; PEM."""

    certificate: bytes
    key: bytes
    bundle: bytes


def ca_secrets(workload: Workload, names: Iterable[str], cas: Mapping[str, IssuingCa]) -> list[Object]:
    """The Secrets of CAs, by their names; without those of which there is no CA, which another tool makes."""
    found = []
    for name in names:
        if (ca := cas.get(name)) is not None:
            files = {"tls.crt": ca.certificate, "tls.key": ca.key, "ca.crt": ca.bundle}
            data = {file: b64encode(content).decode() for file, content in files.items()}
            found.append(
                namespaced_object("v1", "Secret", name, workload.component, type="kubernetes.io/tls", data=data)
            )
    return found


def completed(objects: Iterable[Object], config: AddonConfig, version: str) -> list[Object]:
    """Objects with the version as a label, and in pods the Secrets to pull the image with."""
    found = []
    for one in objects:
        metadata = one["metadata"]
        labelled = metadata["labels"] | {VERSION: version.replace("+", "_")[:63]}
        found.append(one | {"metadata": metadata | {"labels": labelled}})
        if config.image_pull_secrets and one["kind"] in ("DaemonSet", "Deployment", "Job"):
            secrets = [{"name": name} for name in config.image_pull_secrets]
            one["spec"]["template"]["spec"]["imagePullSecrets"] = secrets
    return found


def pod_template(workload: Workload, spec: Object) -> Object:
    """The pod of a component."""
    return {"metadata": {"labels": labels(workload.component)}, "spec": spec}


_POD_SECURITY = "pod-security.kubernetes.io"


def namespace() -> Object:
    """The namespace. The node components mount paths of the host, which only the level `privileged` admits.

    `audit` stays at `restricted`, so that the audit log names every other pod.
    """
    found = global_object("v1", "Namespace", NAMESPACE, ITSELF.component)
    found["metadata"]["labels"] |= {f"{_POD_SECURITY}/enforce": "privileged", f"{_POD_SECURITY}/audit": "restricted"}
    return found


def critical_pods() -> Object:
    """Admits pods with the priorities of system components, in clusters that restrict these to some namespaces.

    Such clusters require a quota that names the priorities. In others it restricts nothing.
    """
    classes = {"operator": "In", "scopeName": "PriorityClass", "values": list(CRITICAL)}
    spec = {"hard": {"pods": "1000000"}, "scopeSelector": {"matchExpressions": [classes]}}
    return namespaced_object("v1", "ResourceQuota", "confcom-critical-pods", ITSELF.component, spec=spec)


# Roles: a component without one may do nothing at the Kubernetes API.

RBAC = "rbac.authorization.k8s.io"


def rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> Object:
    """One rule of a role."""
    found: Object = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return found | ({"resourceNames": names} if names else {})


def _bound(
    make: Callable[..., Object], kind: str, name: str, workload: Workload, rules: Sequence[Object]
) -> list[Object]:
    """A role and its binding to a component's account, if there are rules."""
    if not rules:
        return []
    subject = {"kind": "ServiceAccount", "name": workload.name, "namespace": NAMESPACE}
    reference = {"apiGroup": RBAC, "kind": kind, "name": name}
    return [
        make(f"{RBAC}/v1", kind, name, workload.component, rules=[*rules]),
        make(f"{RBAC}/v1", f"{kind}Binding", name, workload.component, roleRef=reference, subjects=[subject]),
    ]


# Network policies: all traffic of the namespace is closed except for what a component needs. The API server and the
# kubelet are no pods, so their side of a rule is ports, or addresses that the operator names.

DNS_PORT = 53


def nothing_else() -> Object:
    """Closes what no other policy opens."""
    return namespaced_object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "confcom-nothing-else",
        ITSELF.component,
        spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    )


def network_policy(
    workload: Workload,
    *,
    ingress: Iterable[int] = (),
    egress: Iterable[int] = (),
    called: Iterable[int] = (),
    callers: Iterable[str] = (),
) -> Object:
    """Opens TCP ports of a component (`ingress`), and ports of others to it (`egress`); with DNS over UDP beside 53.

    The ports `called` are open to the CIDRs `callers` alone, or to every source if there are none.
    """
    sources = [{"ipBlock": {"cidr": cidr}} for cidr in callers]
    rules = [_opened(ingress), _opened(called) | ({"from": sources} if sources else {})]
    spec: Object = {
        "podSelector": {"matchLabels": selector(workload.component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [rule for rule in rules if rule["ports"]],
        "egress": [rule for rule in [_opened(egress)] if rule["ports"]],
    }
    return namespaced_object("networking.k8s.io/v1", "NetworkPolicy", workload.name, workload.component, spec=spec)


def _opened(ports: Iterable[int]) -> Object:
    once = dict.fromkeys(ports)
    dns = [{"port": DNS_PORT, "protocol": "UDP"}] if DNS_PORT in once else []
    return {"ports": [{"port": port, "protocol": "TCP"} for port in once] + dns}


def dns_policy(egress: Iterable[int]) -> str:
    """Cluster DNS for pods that reach services by name; others do not depend on it."""
    return "ClusterFirst" if DNS_PORT in egress else "Default"
