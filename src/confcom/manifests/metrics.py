"""The exporter of EPC use: reads which enclave memory the processes of a node have mapped, and watches limits."""

from __future__ import annotations

from confcom.manifests import account_policies, metrics_api, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    METRICS,
    NODE_CRITICAL,
    TMP,
    HostPath,
    Object,
    confined,
    container,
    daemon_set,
    from_pod,
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
    """Every object of the exporter."""
    return [
        objects.opening(
            METRICS, ingress=(HTTP_PORT,), called=metrics_api.exporter_ports(config), egress=config.api_ports
        ),
        service_account(METRICS, token=True),
        *account_policies.own_events(),
        *_rights(),
        _daemon_set(config),
    ]


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
    folders = [
        HostPath("proc", "/proc", at=f"{HOST}/proc"),
        HostPath("nodes", "/sys/devices/system/node", at=f"{HOST}/sys/devices/system/node"),
        # Writable for misc.max only. A process that may write there can limit memory and CPU of any pod.
        HostPath("cgroup", "/sys/fs/cgroup", at=f"{HOST}/sys/fs/cgroup", read_only=not config.epc_enforcement),
        simulated.NODE if config.platform == "simulated" else HostPath("dev", "/dev", at=f"{HOST}/dev"),
    ]
    pod: Object = {
        "automountServiceAccountToken": True,
        "priorityClassName": NODE_CRITICAL,
        "terminationGracePeriodSeconds": 10,
        "containers": [
            _container(config, [*map(HostPath.mount, folders), mount("tmp", TMP), *metrics_api.exporter_mounts(config)])
        ],
        "volumes": [*map(HostPath.volume, folders), tmp_volume(), *metrics_api.exporter_volumes(config)],
    }
    return daemon_set(METRICS, config, pod, {"maxSurge": 1, "maxUnavailable": 0})


def _container(config: AddonConfig, mounts: list[Object]) -> Object:
    values = {"host_root": HOST, "http": f"[::]:{HTTP_PORT}", "enforce": "auto" if config.epc_enforcement else "off"}
    values |= metrics_api.exporter_settings(config)
    if config.platform == "simulated":
        values["simulated_node"] = simulated.NODE_FOLDER
    return container(
        config,
        METRICS.component,
        ["metrics"],
        env=[from_pod("CONFCOM_METRICS_NODE_NAME", "spec.nodeName"), *settings("metrics", values)],
        ports=[
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            *metrics_api.exporter_container_ports(config),
        ],
        resources=resources("20m", "64Mi", "256Mi"),
        # To read the maps of other users' processes, which AppArmor's usual profile allows among containers only.
        securityContext=confined(user=0, add=("SYS_PTRACE",)) | {"appArmorProfile": {"type": "Unconfined"}},
        volumeMounts=mounts,
        **http_probes("http"),
    )
