"""The add-on as Kubernetes objects, in an order in which they can be made one after another."""

from __future__ import annotations

import msgspec

from confcom.manifests import network_policies, rbac
from confcom.manifests.addon_config import DEFAULT_IMAGE, AddonConfig
from confcom.manifests.addon_state import AddonState, state_object
from confcom.manifests.device_plugin import device_plugin, needs_node_status
from confcom.manifests.namespace import helper_priority, namespace
from confcom.manifests.objects import DEVICE_PLUGIN, QUOTE_HELPER, Object
from confcom.manifests.own_node_policy import own_node_policy
from confcom.manifests.quote_helper import HTTP_PORT, quote_helper

COLLATERAL_PORTS = (network_policies.DNS_PORT, 443, 8081)
"""Where the quote helper's libraries look for collateral: Intel or a cloud's cache, or a caching service."""


def render(config: AddonConfig, *, version: str) -> list[Object]:
    """Every object of the add-on, state included; the same for the same settings and version."""
    config.check()
    settled = msgspec.structs.replace(config, image=config.image or f"{DEFAULT_IMAGE}:{version}")
    return [
        namespace(),
        state_object(AddonState(enabled=True, version=version, config=config)),
        network_policies.nothing_else(),
        *_device_plugin(settled),
        *(_quote_helper(settled) if settled.quote_helper else []),
    ]


def _device_plugin(config: AddonConfig) -> list[Object]:
    api = needs_node_status(config)
    found = [network_policies.opening(DEVICE_PLUGIN, egress=network_policies.API_PORTS if api else ())]
    if api:
        rules = [
            rbac.rule("", ["nodes"], ["get", "list", "watch"]),
            rbac.rule("", ["nodes/status"], ["patch"]),
        ]
        found += [*own_node_policy(), *rbac.cluster_role(DEVICE_PLUGIN, rules)]
    return [*found, *device_plugin(config)]


def _quote_helper(config: AddonConfig) -> list[Object]:
    egress = () if config.platform == "simulated" else COLLATERAL_PORTS
    return [
        helper_priority(),
        network_policies.opening(QUOTE_HELPER, ingress=(HTTP_PORT,), egress=egress),
        *quote_helper(config),
    ]
