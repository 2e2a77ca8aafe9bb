"""The quote helper: one AESM service per SGX node, outside the applications, replaced without a gap."""

from __future__ import annotations

from confcom.manifests import collateral, metrics_api, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import QUOTE_HELPER, USER, Object, asks_by_name, confined
from confcom.protocols import aesm
from confcom.protocols.epc import HELPER_EPC

SOCKET_FOLDER = aesm.FOLDER
HTTP_PORT = 9464
DRAIN = 30
"""Seconds for the requests under way when a helper ends; clients give up after 15."""
GRANTED_MACHINE = "/dev/sgx_enclave"
"""The device that the device plugin grants; on a simulated node it holds the node's machine."""


def quote_helper(config: AddonConfig) -> list[Object]:
    """Every object of the quote helper."""
    egress = () if config.platform == "simulated" else collateral.UPSTREAM_PORTS
    exporter = metrics_api.exporter(config)
    return [
        objects.opening(
            QUOTE_HELPER,
            ingress=(HTTP_PORT,),
            called=tuple(exporter.ports.values()),
            egress=egress,
            more=collateral.asked_ports(config),
        ),
        objects.service_account(QUOTE_HELPER, token=False),
        # The successor proves itself beside the present helper and takes the socket over; then the present one ends.
        objects.daemon_set(QUOTE_HELPER, config, _pod(config, exporter)),
    ]


def _pod(config: AddonConfig, exporter: metrics_api.Exporter) -> Object:
    socket = objects.host_path("aesmd-socket", SOCKET_FOLDER, "DirectoryOrCreate", read_only=False)
    # The kubelet makes the folder as root; the helper, which is not root, must be able to write there.
    folder = objects.container(config, "socket-folder", [f"{USER}:{USER}", SOCKET_FOLDER]) | {
        "command": ["chown"],
        "resources": objects.resources("10m", "16Mi", "64Mi"),
        "securityContext": confined(user=0, add=("CHOWN",)),
        "volumeMounts": socket[1],
    }
    # EPC for QE and PCE, with both devices, from the device plugin: without it the helper stays Pending. It is a part
    # of its own, however EPC is published to applications, with room for a successor.
    epc = {HELPER_EPC: str(config.quote_helper_epc_mib)}
    return objects.pod(
        config,
        QUOTE_HELPER,
        ["quote-helper"],
        env=[
            *objects.settings("quote-helper", _settings(config) | exporter.settings | collateral.verifying(config)),
            *collateral.environment(config),
        ],
        ports={"http": HTTP_PORT, **exporter.ports},
        requests=objects.resources("50m", "128Mi", "1Gi", **epc),
        security=confined(profile=config.quote_helper_seccomp),
        volumes=[socket, objects.tmp(), *collateral.volumes(config), *exporter.volumes],
        **asks_by_name(config),
        automountServiceAccountToken=False,
        terminationGracePeriodSeconds=DRAIN,
        # To know which pod is at the other end of a connection, so that pods take turns.
        hostPID=True,
        # A device in a container has the owner and the mode that it has on the host. The group owns mounted Secrets.
        securityContext={"supplementalGroups": list(config.quote_helper_groups)}
        | ({"fsGroup": USER} if config.autoscaling else {}),
        initContainers=[folder],
    )


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
    return found
