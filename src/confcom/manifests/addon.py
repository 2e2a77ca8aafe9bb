"""The add-on as Kubernetes objects, in an order in which they can be made one after another."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from confcom.manifests import collateral, objects
from confcom.manifests import collateral as store
from confcom.manifests import device_plugin as plugin
from confcom.manifests import metrics as exporter
from confcom.manifests import quote_helper as helper
from confcom.manifests import webhook as admission
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.addon_state import AddonState, state_object
from confcom.manifests.objects import (
    COLLATERAL,
    DEVICE_PLUGIN,
    METRICS,
    QUOTE_HELPER,
    WEBHOOK,
    Object,
    completed,
    critical_pods,
    namespace,
)

COLLATERAL_PORTS = (objects.DNS_PORT, 80, 443, collateral.SERVICE_PORT)
"""Where collateral is found: at Intel's service, a cloud's cache (Azure's for a node is at port 80), or a PCCS."""


def render(
    config: AddonConfig,
    *,
    version: str,
    api_ports: Iterable[int] = (),
    webhook_ca: admission.WebhookCa | None = None,
) -> list[Object]:
    """Every object of the add-on, state included; the same for the same settings and version.

    `api_ports` is where the cluster's API server was found, beside what the settings say.
    """
    config.check()
    config.check_grants()
    ports = tuple(dict.fromkeys((*config.api_ports, *api_ports)))
    settled = msgspec.structs.replace(config, image=image_of(config, version), api_ports=ports)
    rendered = [
        namespace(),
        state_object(AddonState(enabled=True, version=version, config=config)),
        critical_pods(),
        objects.nothing_else(),
        *collateral.quote_provider(settled),
        *_device_plugin(settled),
        *(_quote_helper(settled) if settled.quote_helper else []),
        *(_collateral(settled) if settled.collateral else []),
        *(_metrics(settled) if settled.metrics else []),
        *(_webhook(settled, webhook_ca) if settled.webhook else []),
    ]
    return completed(rendered, settled, version)


def _device_plugin(config: AddonConfig) -> list[Object]:
    egress = config.api_ports if plugin.needs_api(config) else ()
    opened = objects.opening(DEVICE_PLUGIN, ingress=(plugin.HTTP_PORT,), egress=egress)
    return [opened, *plugin.rights(config), *plugin.device_plugin(config)]


def _quote_helper(config: AddonConfig) -> list[Object]:
    egress = () if config.platform == "simulated" else COLLATERAL_PORTS
    more = collateral.asked_ports(config)
    opened = objects.opening(QUOTE_HELPER, ingress=(helper.HTTP_PORT,), egress=egress, more=more)
    return [opened, *helper.quote_helper(config)]


def _collateral(config: AddonConfig) -> list[Object]:
    egress = () if config.platform == "simulated" else COLLATERAL_PORTS
    opened = objects.opening(COLLATERAL, ingress=(store.PORT,), egress=egress, more=config.api_ports)
    return [opened, *store.collateral(config)]


def _metrics(config: AddonConfig) -> list[Object]:
    opened = objects.opening(METRICS, ingress=(exporter.HTTP_PORT,), egress=config.api_ports)
    return [opened, *exporter.metrics(config)]


def _webhook(config: AddonConfig, ca: admission.WebhookCa | None) -> list[Object]:
    opened = objects.opening(
        WEBHOOK,
        ingress=(admission.HTTP_PORT,),
        egress=config.api_ports,
        called=(admission.HTTPS_PORT,),
        callers=config.api_addresses,
    )
    return [opened, *admission.webhook(config, ca)]
