"""The attestation service, one pod that relying parties ask; its policies, audit record and keys are on a volume.

An instance judges real or simulated evidence, never both: the simulated one has another name, and so another host,
certificate and volume.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from confcom.manifests import collateral, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import Mounted, Object, Workload
from confcom.manifests.tls_service import FOLDER, SharedDatabase, TlsService

HARDWARE = Workload("attestation", "confcom-attestation")
SIMULATED = Workload("attestation", "confcom-attestation-simulated")
CLAIM_SUFFIX = "-state"
"""Of the claim of its volume with policies, audit record and signing keys, after its name."""
PORT = 8443
SERVICE_PORT = 443
ADMIN_SECRET = "confcom-attestation-admin"  # noqa: S105 - a name
"""The operator's, unless the settings name another: with the file of administrators under `ADMIN_KEY`, and the files
that it names. It need not be there."""
ADMIN_KEY = "administrators.toml"
ADMIN_FOLDER = "/etc/confcom/administrators"
PIN_FOLDER = "/etc/confcom/pin"
PIN_KEY = "pin"
KEYS_FOLDER = "/etc/confcom/attestation-keys"
"""With a database: the operator's Secret with the signing keys, which all pods have."""


def attestation(config: AddonConfig) -> list[Object]:
    """Every object of the service."""
    workload = SIMULATED if config.platform == "simulated" else HARDWARE
    secret, storage, claim = config.attestation_tls_secret, config.attestation_storage, f"{workload.name}{CLAIM_SUFFIX}"
    found = TlsService(workload, PORT, SERVICE_PORT, secret, storage, claim, _database(config))
    judging = collateral.judging(config)
    return found.objects(
        config,
        settings=_settings(config, found.host) | judging.settings,
        volumes=[*_volumes(config, workload), *judging.volumes],
        requests=objects.resources("100m", "128Mi", "512Mi"),
        egress=judging.egress,
        migrates="CONFCOM_ATTESTATION_SERVICE_STORE",
        init=judging.init,
    )


def _database(config: AddonConfig) -> SharedDatabase | None:
    if not config.attestation_database:
        return None
    return SharedDatabase(config.attestation_database, config.attestation_database_port, config.attestation_replicas)


def _settings(config: AddonConfig, host: str) -> dict[str, str]:
    found = {
        "url": config.attestation_url or f"https://{host}",
        "keys": _keys(config),
        "administrators": f"{ADMIN_FOLDER}/{ADMIN_KEY}",
        "administrators_optional": "true",
    }
    if config.attestation_url:
        found["tls_hosts"] = urlsplit(config.attestation_url).hostname or ""
    return found


def _keys(config: AddonConfig) -> str:
    if config.attestation_keys:
        return f"{config.attestation_keys}&pin-source={PIN_FOLDER}/{PIN_KEY}"
    return KEYS_FOLDER if config.attestation_database else f"{FOLDER}/attestation-keys"


def _volumes(config: AddonConfig, workload: Workload) -> list[Mounted]:
    administrators = config.attestation_administrators or ADMIN_SECRET
    found = [objects.secret_volume("administrators", administrators, ADMIN_FOLDER, optional=True)]
    if config.attestation_keys:
        found.append(objects.secret_volume("pin", config.attestation_pin_secret, PIN_FOLDER))
    elif config.attestation_database:
        found.append(objects.secret_volume("keys", f"{workload.name}-keys", KEYS_FOLDER))
    return found
