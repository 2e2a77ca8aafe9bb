"""The exporter of EPC use: reads which enclave memory the processes of a node have mapped, and watches limits."""

from __future__ import annotations

from confcom.manifests import account_policies, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    METRICS,
    NODE_CRITICAL,
    TMP,
    Object,
    confined,
    container,
    daemon_set,
    from_pod,
    host_path,
    http_probes,
    mount,
    resources,
    service_account,
    settings,
    tmp_volume,
)

HTTP_PORT = 9466
HOST = "/host"


def metrics(config: AddonConfig) -> list[Object]:
    """Everything but network policy."""
    return [service_account(METRICS, token=True), *account_policies.own_events(), *_rights(), _daemon_set(config)]


def _rights() -> list[Object]:
    return objects.cluster_role(
        METRICS,
        [
            objects.rule("", ["pods"], ["list", "watch"]),
            objects.rule("", ["nodes"], ["get"]),
            objects.rule("resource.k8s.io", ["resourceclaims"], ["get"]),
            objects.rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
        ],
    )


def _daemon_set(config: AddonConfig) -> Object:
    volumes = [
        host_path("proc", "/proc", "Directory"),
        host_path("nodes", "/sys/devices/system/node", "Directory"),
        host_path("cgroup", "/sys/fs/cgroup", "Directory"),
    ]
    mounts = [
        mount("proc", f"{HOST}/proc", read_only=True),
        mount("nodes", f"{HOST}/sys/devices/system/node", read_only=True),
        # Writable for misc.max only: whoever may write there can take memory and processors away from any pod.
        mount("cgroup", f"{HOST}/sys/fs/cgroup", read_only=not config.epc_enforcement),
    ]
    if config.platform == "simulated":
        volumes.append(simulated.node_folder())
        mounts.append(mount("simulated-node", simulated.NODE_FOLDER, read_only=True))
    else:
        volumes.append(host_path("dev", "/dev", "Directory"))
        mounts.append(mount("dev", f"{HOST}/dev", read_only=True))
    volumes.append(tmp_volume())
    mounts.append(mount("tmp", TMP))
    pod: Object = {
        "automountServiceAccountToken": True,
        "priorityClassName": NODE_CRITICAL,
        "terminationGracePeriodSeconds": 10,
        "containers": [_container(config, mounts)],
        "volumes": volumes,
    }
    return daemon_set(METRICS, config, pod, {"maxSurge": 1, "maxUnavailable": 0})


def _container(config: AddonConfig, mounts: list[Object]) -> Object:
    values = {"host_root": HOST, "http": f"[::]:{HTTP_PORT}", "enforce": "auto" if config.epc_enforcement else "off"}
    if config.platform == "simulated":
        values["simulated_node"] = simulated.NODE_FOLDER
    return container(
        config,
        METRICS.component,
        ["metrics"],
        env=[from_pod("CONFCOM_METRICS_NODE_NAME", "spec.nodeName"), *settings("metrics", values)],
        ports=[{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        resources=resources("20m", "64Mi", "256Mi"),
        # The maps of other users' processes are open to whoever may trace them, and AppArmor's usual profile for
        # containers allows that among containers only.
        securityContext=confined(user=0, add=("SYS_PTRACE",)) | {"appArmorProfile": {"type": "Unconfined"}},
        volumeMounts=mounts,
        **http_probes("http"),
    )
