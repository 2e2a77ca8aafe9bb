"""The add-on as Kubernetes objects, in an order in which they can be created one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from confcom.manifests import (
    attestation,
    certificate_signer,
    collateral,
    device_plugin,
    metrics,
    metrics_api,
    monitoring,
    quote_helper,
    webhook,
)
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.addon_state import AddonState, state_object
from confcom.manifests.objects import (
    METRICS_API,
    WEBHOOK,
    IssuingCa,
    Object,
    completed,
    critical_pods,
    names_of,
    namespace,
    nothing_else,
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
        found.append(Issuer(metrics_api.CA_SECRET, "confcom metrics API", names_of(METRICS_API)))
        found.append(Issuer(metrics_api.EXPORTERS_CA_SECRET, "confcom exporters", tuple(EXPORTERS.values())))
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
    rendered = [
        namespace(),
        state_object(AddonState(enabled=True, version=version, config=config)),
        critical_pods(),
        nothing_else(),
        *collateral.quote_provider(settled),
        *device_plugin.device_plugin(settled),
        *(quote_helper.quote_helper(settled) if settled.quote_helper else []),
        *(collateral.collateral(settled) if settled.collateral else []),
        *(attestation.attestation(settled) if settled.attestation else []),
        *(certificate_signer.certificate_signer(settled) if settled.attested_certificates else []),
        *(metrics.metrics(settled) if settled.metrics else []),
        *monitoring.monitoring(settled, operator=prometheus_operator),
        *(webhook.webhook(settled, cas.get(webhook.CA_SECRET)) if settled.webhook else []),
        *(metrics_api.metrics_api(settled, cas) if settled.autoscaling else []),
    ]
    return completed(rendered, settled, version)
