"""The quote helper: one AESM service per SGX node, outside the applications, replaced without a gap."""

from __future__ import annotations

from confcom.manifests import collateral, metrics, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import QUOTE_HELPER, USER, Component, Object, confined
from confcom.protocols import aesm
from confcom.protocols.epc import HELPER_EPC

SOCKET_FOLDER = aesm.FOLDER
HTTP_PORT = 9464
DRAIN = 30
"""Seconds for the requests under way when a helper ends; clients give up after 15."""
GRANTED_MACHINE = "/dev/sgx_enclave"
"""The device that the device plugin grants; on a simulated node it holds the node's machine."""


def quote_helper(config: AddonConfig) -> list[Object]:
    """Every object of the quote helper.

    In an update the successor proves itself beside the present helper and takes the socket over; then that one ends.
    """
    exporter = metrics.exporter(config)
    socket = objects.host_path("aesmd-socket", SOCKET_FOLDER, "DirectoryOrCreate", read_only=False)
    # The kubelet makes the folder as root; the helper, which is not root, must be able to write there.
    owned = [f"{USER}:{USER}", SOCKET_FOLDER]
    as_root = confined(user=0, add=("CHOWN",))
    folder = objects.task(config, "socket-folder", owned, socket[1], command=["chown"], securityContext=as_root)
    # EPC for QE and PCE, with both devices, from the device plugin: without it the helper stays Pending. It is a part
    # of its own, however EPC is published to applications, with room for a successor.
    epc = {HELPER_EPC: str(config.quote_helper_epc_mib)}
    # A device in a container has the owner and the mode that it has on the host. The group owns mounted Secrets.
    groups: Object = {"supplementalGroups": list(config.quote_helper_groups)}
    return Component(
        workload=QUOTE_HELPER,
        settings=_settings(config) | exporter.settings | collateral.verifying(config),
        env=collateral.environment(config),
        ports={"http": HTTP_PORT, **exporter.ports},
        requests=objects.resources("50m", "128Mi", "1Gi", **epc),
        security=confined(profile=config.quote_helper_seccomp),
        volumes=[socket, *collateral.volumes(config), *exporter.volumes],
        egress=() if config.platform == "simulated" else (*collateral.UPSTREAM_PORTS, *collateral.asked_ports(config)),
        init=[folder],
        pod={
            "terminationGracePeriodSeconds": DRAIN,
            # To know which pod is at the other end of a connection, so that pods take turns.
            "hostPID": True,
            "securityContext": groups | ({"fsGroup": USER} if config.autoscaling else {}),
        },
    ).objects(config)


def _settings(config: AddonConfig) -> dict[str, str]:
    found = {
        "platform": config.platform,
        "socket": f"{SOCKET_FOLDER}/{aesm.SOCKET}",
        "replace": "true",
        "when_replaced": "wait",
        "when_killed": "restart",
    }
    if config.expected_signers:
        found["expected_signers"] = ",".join(config.expected_signers)
    if config.platform == "simulated":
        found["simulated_machine"] = GRANTED_MACHINE
    return found
