"""What runs on every SGX node for its pods: the device plugin and the quote helper.

The device plugin is root because the kubelet's folder is root's, and nothing beyond that. The quote helper is an AESM
service outside the applications, replaced without a gap.
"""

from __future__ import annotations

from confcom.manifests import account_policies, collateral, metrics, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    DEVICE_PLUGIN,
    QUOTE_HELPER,
    USER,
    Component,
    Mounted,
    Object,
    confined,
    host_path,
    rule,
)
from confcom.protocols import aesm
from confcom.protocols.epc import DRA_VERSION, EPC_CAPACITY, EPC_CLASS, HELPER_EPC, PROVISION_CLASS, device_class

_DRA = "resource.k8s.io"
KUBELET = "/var/lib/kubelet"
CDI = "/var/run/cdi"
HOST = "/host"
"""Where the container sees what it may see of the host."""
DEVICE_PLUGIN_PORT = 9465
GRANT_SLOTS = 110
"""Holders of the provisioning device per node when applications may hold it: as many as a node has pods."""


def device_plugin(config: AddonConfig) -> list[Object]:
    """Every object of the device plugin.

    In an update the successor has its image and looks at the node before its turn comes, when the present one ends.
    """
    # Unless EPC is published as devices, some node may have to write to its own status, or to publish slices.
    policies, rules = account_policies.reserved(config), []
    if config.publisher != "devices":
        # With claims too: amounts that another publisher left in the node's status would be given out twice.
        policies += account_policies.own_node(config)
        rules = [rule("", ["nodes"], ["get", "list", "watch"]), rule("", ["nodes/status"], ["patch"])]
    if config.publisher == "dra":
        policies += [*_device_classes(), *account_policies.own_slices()]
        rules.append(rule(_DRA, ["resourceslices"], ["get", "list", "watch", "create", "update", "delete"]))
        rules.append(rule(_DRA, ["resourceclaims"], ["get"]))
    volumes, init = _folders(config), []
    if config.platform == "simulated":
        volumes += [(simulated.world_volume(), []), simulated.machine_volume()]
        init.append(simulated.machine_container(config))
    component = Component(
        workload=DEVICE_PLUGIN,
        settings=_plugin_settings(config),
        env=[objects.from_pod("CONFCOM_DEVICE_PLUGIN_NODE_NAME", "spec.nodeName")],
        ports={"http": DEVICE_PLUGIN_PORT},
        requests=objects.resources("20m", "64Mi", "256Mi"),
        security=objects.confined(user=0),
        volumes=volumes,
        cluster_rules=rules,
        init=init,
        pod={"terminationGracePeriodSeconds": 10},
    )
    return [*policies, *component.objects(config)]


def _device_classes() -> list[Object]:
    """The classes by which claims find EPC and the provisioning device."""
    found: list[Object] = [
        device_class(EPC_CLASS, "epc"),
        device_class(PROVISION_CLASS, "provision"),
    ]
    for one in found:
        one["metadata"]["labels"] = objects.labels(DEVICE_PLUGIN.component)
    return found


def trial_claim() -> Object:
    """A template of a claim of 1 MiB, to find out whether a cluster keeps the amount."""
    amount = {"requests": {EPC_CAPACITY: "1Mi"}}
    request = {"name": "epc", "exactly": {"deviceClassName": EPC_CLASS, "capacity": amount}}
    spec = {"spec": {"devices": {"requests": [request]}}}
    # A namespace that every cluster has: the add-on's own may not be there yet.
    metadata = {"name": "confcom-trial", "namespace": "default"}
    return {"apiVersion": DRA_VERSION, "kind": "ResourceClaimTemplate", "metadata": metadata, "spec": spec}


def _folders(config: AddonConfig) -> list[Mounted]:
    """The kubelet's sockets, the container runtime's device files, and what shows the node's hardware.

    Devices are seen, not used: a container without devices of its own cannot open any.
    """
    made = "DirectoryOrCreate"
    found = [host_path("device-plugins", f"{KUBELET}/device-plugins", made, read_only=False)]
    if config.publisher == "dra":
        found.append(host_path("registry", f"{KUBELET}/plugins_registry", made, read_only=False))
        found.append(host_path("cdi", CDI, made, read_only=False))
    found.append(host_path("pod-resources", f"{KUBELET}/pod-resources", made))
    if config.quote_helper:
        found.append(host_path("helper-folder", aesm.FOLDER, made))
    if config.platform == "simulated":
        return [*found, simulated.node_folder(read_only=False)]
    return [
        *found,
        host_path("dev", "/dev", at=f"{HOST}/dev"),
        host_path("sys", "/sys/devices/system/node", at=f"{HOST}/sys/devices/system/node"),
        host_path("cpuinfo", "/proc/cpuinfo", "File", at=f"{HOST}/proc/cpuinfo"),
    ]


def _plugin_settings(config: AddonConfig) -> dict[str, str]:
    found = {
        "platform": config.platform,
        "publisher": config.publisher,
        "reserve_mib": str(config.epc_reserve_mib),
        "overcommit": objects.number(config.overcommit),
        "wait_for_sgx": "true",
    }
    if config.platform == "simulated":
        found |= {
            "simulated_machine": simulated.MACHINE_FILE,
            "simulated_epc": config.simulated_epc,
            "simulated_node": simulated.NODE_FOLDER,
        }
    else:
        found["host_root"] = HOST
    if config.quote_helper:
        found |= {"helper_folder": aesm.FOLDER, "helper_epc_mib": str(config.quote_helper_epc_mib)}
    slots = GRANT_SLOTS if config.provision_grants else 0
    return found | {"provision_limit": str(slots), "provision_namespaces": ",".join(config.provision_namespaces)}


SOCKET_FOLDER = aesm.FOLDER
QUOTE_HELPER_PORT = 9464
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
        settings=_helper_settings(config) | exporter.settings | collateral.verifying(config),
        env=collateral.environment(config),
        ports={"http": QUOTE_HELPER_PORT, **exporter.ports},
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


def _helper_settings(config: AddonConfig) -> dict[str, str]:
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
