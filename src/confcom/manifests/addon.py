"""The add-on as Kubernetes objects, in an order in which they can be created one after another."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from confcom.manifests import attestation, collateral, device_plugin, metrics, quote_helper, webhook
from confcom.manifests.addon_config import AddonConfig, image_of
from confcom.manifests.addon_state import AddonState, state_object
from confcom.manifests.objects import Object, completed, critical_pods, namespace, nothing_else


def render(
    config: AddonConfig,
    *,
    version: str,
    api_ports: Iterable[int] = (),
    webhook_ca: webhook.WebhookCa | None = None,
) -> list[Object]:
    """Every object of the add-on, state included; the same for the same settings and version.

    `api_ports` are ports of the cluster's API server, beside those of the settings.
    """
    config.check()
    config.check_together()
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
        *(metrics.metrics(settled) if settled.metrics else []),
        *(webhook.webhook(settled, webhook_ca) if settled.webhook else []),
    ]
    return completed(rendered, settled, version)
