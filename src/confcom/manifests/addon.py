"""Renders the add-on as Kubernetes objects in the order of their creation, and reads and writes its state.

The state is a ConfigMap with the settings as flat strings, as `az aks` shows add-ons. Its keys compare without case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from confcom.errors import ConfigError
from confcom.manifests import (
    collateral,
    judging,
    metrics,
    node_daemons,
    webhook,
)
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.objects import (
    ADDON,
    ITSELF,
    METRICS_API,
    NAMESPACE,
    WEBHOOK,
    IssuingCa,
    Object,
    completed,
    critical_pods,
    names_of,
    namespace,
    namespaced_object,
    nothing_else,
    number,
)
from confcom.protocols.custom_metrics import EXPORTERS


class Issuer(NamedTuple):
    """A CA that the installer makes: its Secret, its name, and the DNS names that its certificates may be for."""

    secret: str
    common_name: str
    names: tuple[str, ...]


def issuers(config: AddonConfig) -> list[Issuer]:
    """The CAs that these settings need."""
    found = []
    if config.webhook:
        found.append(Issuer(webhook.CA_SECRET, "confcom admission webhook", names_of(WEBHOOK)))
    if config.autoscaling:
        found.append(Issuer(metrics.CA_SECRET, "confcom metrics API", names_of(METRICS_API)))
        found.append(Issuer(metrics.EXPORTERS_CA_SECRET, "confcom exporters", tuple(EXPORTERS.values())))
    return found


def render(
    config: AddonConfig,
    *,
    version: str,
    api_ports: Iterable[int] = (),
    cas: Mapping[str, IssuingCa] = MappingProxyType({}),
    prometheus_operator: bool = False,
) -> list[Object]:
    """Every object of the add-on, state included; the same for the same settings and version.

    `api_ports` are ports of the cluster's API server, beside those of the settings; `cas` are those of `issuers`, by
    Secret; `prometheus_operator`: whether the cluster has the kinds of that operator.
    """
    config.check()
    ports = tuple(dict.fromkeys((*config.api_ports, *api_ports)))
    settled = msgspec.structs.replace(config, image=image_of(config, version), api_ports=ports)
    components = [
        *node_daemons.device_plugin(settled),
        *(node_daemons.quote_helper(settled) if settled.quote_helper else []),
        *(collateral.collateral(settled) if settled.collateral else []),
        *(judging.attestation(settled) if settled.attestation else []),
        *(judging.certificate_signer(settled) if settled.attested_certificates else []),
        *(metrics.metrics(settled) if settled.metrics else []),
        *(webhook.webhook(settled, cas.get(webhook.CA_SECRET)) if settled.webhook else []),
        *(metrics.metrics_api(settled, cas) if settled.autoscaling else []),
    ]
    rendered = [
        namespace(),
        state_object(AddonState(enabled=True, version=version, config=config)),
        critical_pods(),
        nothing_else(),
        *collateral.quote_provider(settled),
        *metrics.monitoring(settled, components, operator=prometheus_operator),
        *components,
    ]
    return completed(rendered, settled, version)


def remarks(config: AddonConfig) -> list[str]:
    """What an operator should know who enables these settings."""
    found = []
    if config.platform == "intel" and config.quote_helper and not collateral.source(config):
        found.append(
            f"the quote helper gets its PCK certificates from the service that its image names in "
            f"{collateral.OLD_PATH}: --enable-collateral or --collateral-url names another"
        )
    if config.attestation and not config.attestation_storage and not config.attestation_database:
        found.append(
            "policies, audit record and signing keys of the attestation service end with its pod: "
            "--attestation-storage names a volume"
        )
    return found


# The state of the add-on in a cluster.

API_KEY = "ACCSGXDevicePlugin"
"""What AKS calls the add-on in a cluster's profile."""
HELPER_KEY = "ACCSGXQuoteHelperEnabled"
STATE_CONFIG_MAP = ITSELF.name

_ENABLED = "enabled"
_VERSION = "version"
_ADVICE = f"Correct it with `kubectl -n {NAMESPACE} edit configmap {STATE_CONFIG_MAP}`, or purge and enable it again."


class AddonState(NamedTuple):
    """What a cluster remembers of the add-on; `version` is that of the program which wrote it."""

    enabled: bool
    version: str
    config: AddonConfig


def flat_settings(config: AddonConfig) -> dict[str, str]:
    """Every setting as a string, lists with commas."""
    return {key_of(field): _flat(getattr(config, field)) for field in config.__struct_fields__}


def state_object(state: AddonState) -> Object:
    """The ConfigMap."""
    about = {"name": ADDON, "apiKey": API_KEY, _ENABLED: _flat(state.enabled), _VERSION: state.version}
    made = namespaced_object("v1", "ConfigMap", STATE_CONFIG_MAP, ITSELF.component)
    (found,) = completed([made], state.config, state.version)
    return found | {"data": about | flat_settings(state.config)}


def parse_state(data: Mapping[str, str]) -> AddonState:
    """Read the ConfigMap; what a later version may have written beside is left out, and a wrong value is named.

    Keys compare without case. A key as we write it counts more than another spelling: a command wrote it.
    """
    values = {key.lower(): value for key, value in data.items()}
    known: dict[str, Any] = {}
    for field in AddonConfig.__struct_fields__:
        key = key_of(field)
        text = data.get(key, values.get(key.lower()))
        if text is not None:
            known[field] = _parse(field, text)
    try:
        config = AddonConfig.read(known, key_of)
    except ConfigError as error:
        raise ConfigError(f"ConfigMap {NAMESPACE}/{STATE_CONFIG_MAP}: {error}", advice=_ADVICE) from error
    return AddonState(values.get(_ENABLED, "").lower() == "true", values.get(_VERSION, ""), config)


def key_of(field: str) -> str:
    """The key of a field: AKS' own for the quote helper, else the field's name in Kubernetes' way of writing."""
    if field == "quote_helper":
        return HELPER_KEY
    return f"{_camel(field)}Enabled" if isinstance(getattr(_DEFAULTS, field), bool) else _camel(field)


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join("MiB" if word == "mib" else word.capitalize() for word in rest)


def _flat(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(field: str, text: str) -> object:
    default = getattr(_DEFAULTS, field)
    if isinstance(default, tuple):
        return [word for part in text.split(",") if (word := part.strip())]
    return text.strip().lower() if isinstance(default, bool) else text


_DEFAULTS = AddonConfig()
