"""The collateral service: one pod in the cluster that all nodes and verifiers ask, by the paths of Intel's PCCS."""

from __future__ import annotations

from confcom.manifests import simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    COLLATERAL,
    TMP,
    USER,
    Object,
    asks_by_name,
    confined,
    container,
    deployment,
    http_probes,
    mount,
    resources,
    service,
    service_account,
    settings,
    tmp_volume,
)

PORT = 8081
STORE_FOLDER = "/var/lib/confcom"


def collateral(config: AddonConfig) -> list[Object]:
    """Service account, Service and Deployment."""
    return [
        service_account(COLLATERAL, token=False),
        service(COLLATERAL, PORT, "http"),
        deployment(COLLATERAL, _pod(config), replicas=1),
    ]


def _pod(config: AddonConfig) -> Object:
    # What is in the store can be fetched again; a new pod begins with an empty one.
    volumes: list[Object] = [tmp_volume(), {"name": "store", "emptyDir": {"sizeLimit": "256Mi"}}]
    mounts = [mount("tmp", TMP), mount("store", STORE_FOLDER)]
    if config.platform == "simulated":
        volumes.append(simulated.world_volume())
        mounts.append(mount("world", simulated.WORLD_FOLDER, read_only=True))
    return {
        **asks_by_name(config),
        "automountServiceAccountToken": False,
        "securityContext": {"fsGroup": USER},
        "terminationGracePeriodSeconds": 30,
        "containers": [
            container(
                config,
                COLLATERAL.component,
                ["collateral", "serve"],
                env=settings("collateral-service", _values(config)),
                ports=[{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                resources=resources("50m", "128Mi", "512Mi"),
                securityContext=confined(),
                volumeMounts=mounts,
                **http_probes("http"),
            )
        ],
        "volumes": volumes,
    }


def _values(config: AddonConfig) -> dict[str, str]:
    found = {
        "listen": f"[::]:{PORT}",
        # Whoever uses what it serves verifies Intel's signatures; who is on the way can only withhold it.
        "insecure_http": "true",
        "store": f"{STORE_FOLDER}/collateral.sqlite",
        "upstream": config.collateral_upstream,
    }
    if config.platform == "simulated":
        found |= {"upstream": "simulated", "simulated_machine": f"{simulated.WORLD_FOLDER}/{simulated.WORLD_KEY}"}
    return found
