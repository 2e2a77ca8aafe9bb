"""The quote helper: one AESM service per SGX node, outside the applications, replaced without a gap."""

from __future__ import annotations

from confcom.manifests import collateral, metrics_api
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    NODE_CRITICAL,
    QUOTE_HELPER,
    TMP,
    USER,
    HostPath,
    Object,
    asks_by_name,
    confined,
    container,
    daemon_set,
    http_probes,
    mount,
    opening,
    resources,
    service_account,
    settings,
    tmp_volume,
)
from confcom.protocols import aesm
from confcom.protocols.epc import HELPER_EPC

SOCKET_FOLDER = aesm.FOLDER
_SOCKET = HostPath("aesmd-socket", SOCKET_FOLDER, "DirectoryOrCreate", read_only=False)
HTTP_PORT = 9464
DRAIN = 30
"""Seconds for the requests under way when a helper ends; clients give up after 15."""
GRANTED_MACHINE = "/dev/sgx_enclave"
"""The device that the device plugin grants; on a simulated node it holds the node's machine."""


def quote_helper(config: AddonConfig) -> list[Object]:
    """Every object of the quote helper."""
    egress = () if config.platform == "simulated" else collateral.UPSTREAM_PORTS
    return [
        opening(
            QUOTE_HELPER,
            ingress=(HTTP_PORT,),
            called=metrics_api.exporter_ports(config),
            egress=egress,
            more=collateral.asked_ports(config),
        ),
        service_account(QUOTE_HELPER, token=False),
        _daemon_set(config),
    ]


def _daemon_set(config: AddonConfig) -> Object:
    pod: Object = {
        **asks_by_name(config),
        "automountServiceAccountToken": False,
        "priorityClassName": NODE_CRITICAL,
        "terminationGracePeriodSeconds": DRAIN,
        # To know which pod is at the other end of a connection, so that pods take turns.
        "hostPID": True,
        # A device in a container has the owner and the mode that it has on the host. The group owns mounted Secrets.
        "securityContext": {"supplementalGroups": list(config.quote_helper_groups)}
        | ({"fsGroup": USER} if config.autoscaling else {}),
        "initContainers": [_socket_folder(config)],
        "containers": [_container(config)],
        "volumes": [_SOCKET.volume(), tmp_volume(), *collateral.volumes(config), *metrics_api.exporter_volumes(config)],
    }
    # The successor proves itself beside the present helper and takes the socket over; only then the present one ends.
    return daemon_set(QUOTE_HELPER, config, pod, {"maxSurge": 1, "maxUnavailable": 0})


def _socket_folder(config: AddonConfig) -> Object:
    """The kubelet makes the folder as root; the helper, who is not root, must be able to write there."""
    found = container(config, "socket-folder", [f"{USER}:{USER}", SOCKET_FOLDER])
    return found | {
        "command": ["chown"],
        "resources": resources("10m", "16Mi", "64Mi"),
        "securityContext": confined(user=0, add=("CHOWN",)),
        "volumeMounts": [_SOCKET.mount()],
    }


def _container(config: AddonConfig) -> Object:
    return container(
        config,
        QUOTE_HELPER.component,
        ["quote-helper"],
        env=[*settings("quote-helper", _settings(config)), *collateral.environment(config)],
        ports=[
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            *metrics_api.exporter_container_ports(config),
        ],
        resources=_resources(config),
        securityContext=confined(profile=config.quote_helper_seccomp),
        volumeMounts=[
            _SOCKET.mount(),
            mount("tmp", TMP),
            *collateral.mounts(config),
            *metrics_api.exporter_mounts(config),
        ],
        **http_probes("http"),
    )


def _resources(config: AddonConfig) -> Object:
    """EPC for QE and PCE, with both devices, from the device plugin: without it the helper stays Pending.

    It is a part of its own, however EPC is published to applications, with room for a successor.
    """
    return resources("50m", "128Mi", "1Gi", **{HELPER_EPC: str(config.quote_helper_epc_mib)})


def _settings(config: AddonConfig) -> dict[str, str]:
    found = {
        "platform": config.platform,
        "socket": f"{SOCKET_FOLDER}/{aesm.SOCKET}",
        "replace": "true",
        "when_replaced": "wait",
        "when_killed": "restart",
        "http": f"[::]:{HTTP_PORT}",
    }
    if config.expected_signers:
        found["expected_signers"] = ",".join(config.expected_signers)
    if config.platform == "simulated":
        found["simulated_machine"] = GRANTED_MACHINE
    return found | metrics_api.exporter_settings(config) | collateral.verifying(config)
