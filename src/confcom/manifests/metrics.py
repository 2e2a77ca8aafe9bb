"""The exporter of EPC use: reads which enclave memory the processes of a node have mapped, and watches limits."""

from __future__ import annotations

from confcom.manifests import account_policies, metrics_api, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import METRICS, Object, host_path, rule

HTTP_PORT = 9466
HOST = "/host"


def metrics(config: AddonConfig) -> list[Object]:
    """Every object of the exporter."""
    exporter = metrics_api.exporter(config)
    rules = [
        rule("", ["pods"], ["list", "watch"]),
        rule("", ["nodes"], ["get"]),
        rule("resource.k8s.io", ["resourceclaims"], ["get"]),
        rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
    ]
    called = tuple(exporter.ports.values())
    return [
        objects.opening(METRICS, ingress=(HTTP_PORT,), called=called, egress=config.api_ports),
        objects.service_account(METRICS, token=True),
        *account_policies.own_events(),
        *objects.cluster_role(METRICS, rules),
        objects.daemon_set(METRICS, config, _pod(config, exporter)),
    ]


def _pod(config: AddonConfig, exporter: metrics_api.Exporter) -> Object:
    values = {"host_root": HOST, "http": f"[::]:{HTTP_PORT}", "enforce": "auto" if config.epc_enforcement else "off"}
    node = host_path("dev", "/dev", at=f"{HOST}/dev")
    if config.platform == "simulated":
        values["simulated_node"] = simulated.NODE_FOLDER
        node = simulated.node_folder(read_only=True)
    return objects.pod(
        config,
        METRICS,
        ["metrics"],
        env=[
            objects.from_pod("CONFCOM_METRICS_NODE_NAME", "spec.nodeName"),
            *objects.settings("metrics", values | exporter.settings),
        ],
        ports={"http": HTTP_PORT, **exporter.ports},
        requests=objects.resources("20m", "64Mi", "256Mi"),
        # To read the maps of other users' processes, which AppArmor's usual profile allows among containers only.
        security=objects.confined(user=0, add=("SYS_PTRACE",)) | {"appArmorProfile": {"type": "Unconfined"}},
        volumes=[
            host_path("proc", "/proc", at=f"{HOST}/proc"),
            host_path("nodes", "/sys/devices/system/node", at=f"{HOST}/sys/devices/system/node"),
            # Writable for misc.max only. A process that may write there can limit memory and CPU of any pod.
            host_path("cgroup", "/sys/fs/cgroup", at=f"{HOST}/sys/fs/cgroup", read_only=not config.epc_enforcement),
            node,
            objects.tmp(),
            *exporter.volumes,
        ],
        automountServiceAccountToken=True,
        terminationGracePeriodSeconds=10,
    )
