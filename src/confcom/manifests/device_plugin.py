"""The device plugin: one process per SGX node, root because the kubelet's folder is root's, and nothing beyond that."""

from __future__ import annotations

from confcom.manifests import simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    DEVICE_PLUGIN,
    NAMESPACE,
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
)

KUBELET = "/var/lib/kubelet"
HOST = "/host"
"""Where the container sees what it may see of the host."""
HTTP_PORT = 9465
GRANT_SLOTS = 110
"""Holders of the provisioning device per node when applications may hold it: as many as a node has pods."""
HELPER_SLOTS = 2
"""Holders when only the quote helper may: the present one and its successor."""


def device_plugin(config: AddonConfig) -> list[Object]:
    """Service account and DaemonSet."""
    return [service_account(DEVICE_PLUGIN, token=needs_node_status(config)), _daemon_set(config)]


def needs_node_status(config: AddonConfig) -> bool:
    """Whether some node may have to write to its own status, or to publish slices."""
    return config.publisher != "devices"


def _daemon_set(config: AddonConfig) -> Object:
    volumes = [
        host_path("device-plugins", f"{KUBELET}/device-plugins", "Directory"),
        host_path("pod-resources", f"{KUBELET}/pod-resources", "DirectoryOrCreate"),
    ]
    mounts = [
        mount("device-plugins", f"{KUBELET}/device-plugins"),
        mount("pod-resources", f"{KUBELET}/pod-resources", read_only=True),
    ]
    if config.platform == "simulated":
        volumes += [simulated.node_folder(), simulated.world_volume(), simulated.machine_volume()]
        mounts += [mount("simulated-node", simulated.NODE_FOLDER), mount("machine", simulated.MACHINE_FOLDER)]
    else:
        volumes += [
            host_path("dev", "/dev", "Directory"),
            host_path("sys", "/sys/devices/system/node", "Directory"),
            host_path("cpuinfo", "/proc/cpuinfo", "File"),
        ]
        # To see the devices, not to use them: without a device of its own the container cannot open any.
        mounts += [
            mount("dev", f"{HOST}/dev", read_only=True),
            mount("sys", f"{HOST}/sys/devices/system/node", read_only=True),
            mount("cpuinfo", f"{HOST}/proc/cpuinfo", read_only=True),
        ]
    pod: Object = {
        "automountServiceAccountToken": needs_node_status(config),
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 10,
        "initContainers": [simulated.machine_container(config)] if config.platform == "simulated" else [],
        "containers": [_container(config, mounts)],
        "volumes": volumes,
    }
    # One at a time: two plugins cannot hold the same sockets, and running pods do not notice the change.
    return daemon_set(DEVICE_PLUGIN, config, pod, {"maxUnavailable": "10%", "maxSurge": 0})


def _container(config: AddonConfig, mounts: list[Object]) -> Object:
    return container(
        config,
        DEVICE_PLUGIN.component,
        ["device-plugin"],
        env=[
            from_pod("CONFCOM_DEVICE_PLUGIN_NODE_NAME", "spec.nodeName"),
            *settings("device-plugin", _settings(config)),
        ],
        ports=[{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        resources=resources("20m", "64Mi", "256Mi"),
        securityContext=confined(user=0),
        volumeMounts=mounts,
        **http_probes("http"),
    )


def _settings(config: AddonConfig) -> dict[str, str]:
    found = {
        "platform": config.platform,
        "publisher": config.publisher,
        "reserve_mib": str(config.epc_reserve_mib),
        "overcommit": str(config.overcommit),
        "wait_for_sgx": "true",
        "http": f"[::]:{HTTP_PORT}",
    }
    if config.platform == "simulated":
        found |= {
            "simulated_machine": simulated.MACHINE_FILE,
            "simulated_epc": config.simulated_epc,
            "simulated_node": simulated.NODE_FOLDER,
        }
    else:
        found["host_root"] = HOST
    namespaces = ([NAMESPACE] if config.quote_helper else []) + list(config.provision_namespaces)
    if namespaces:
        found |= {
            "provision_limit": str(GRANT_SLOTS if config.provision_grants else HELPER_SLOTS),
            "provision_namespaces": ",".join(namespaces),
        }
    return found
