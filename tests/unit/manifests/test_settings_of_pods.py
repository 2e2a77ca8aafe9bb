"""What the manifests say is what the daemons understand: their settings, resources and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from confcom.errors import ConfigError
from confcom.manifests import node_daemons, webhook
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import METRICS, METRICS_API, NAMESPACE, QUOTE_HELPER, names_of
from confcom.manifests.tls_service import LEAVE_AFTER
from confcom.protocols import admission, epc
from confcom.protocols.custom_metrics import EXPORTER_PORT, EXPORTERS
from confcom.services.attestation.attestation_service import AttestationServiceConfig
from confcom.services.certificate_signer.certificate_signer import CertificateSignerConfig
from confcom.services.collateral.collateral_service import CollateralServiceConfig, parse_fmspcs
from confcom.services.device_plugin.plugin import DevicePluginConfig
from confcom.services.metrics.exporter import MetricsConfig
from confcom.services.metrics_api.metrics_api import MetricsApiConfig
from confcom.services.quote_helper.helper import QuoteHelperConfig
from confcom.services.runtime.process import load
from confcom.services.webhook.webhook import WebhookConfig

DAEMONS: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "device-plugin": ("device-plugin", DevicePluginConfig),
    "quote-helper": ("quote-helper", QuoteHelperConfig),
    "webhook": ("webhook", WebhookConfig),
    "metrics": ("metrics", MetricsConfig),
    "metrics-api": ("metrics-api", MetricsApiConfig),
    "collateral": ("collateral-service", CollateralServiceConfig),
    "attestation": ("attestation-service", AttestationServiceConfig),
    "certificate-signer": ("certificate-signer", CertificateSignerConfig),
}


def daemon_settings(config: AddonConfig, component: str) -> Any:
    service, kind = DAEMONS[component]
    for one in render(config, version="1"):
        if one["kind"] in ("DaemonSet", "Deployment"):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            if container["name"] == component:
                environment = {entry["name"]: entry.get("value", "node-1") for entry in container["env"]}
                prefix = f"CONFCOM_{service.upper().replace('-', '_')}_"
                ours = [name for name in environment if name.startswith("CONFCOM_")]
                fields = {name.removeprefix(prefix).lower() for name in ours}
                assert fields <= set(kind.__struct_fields__), "a setting that nobody reads"
                return load(kind, service=service, environment=environment, flags={})[0]
    raise AssertionError(component)


def config(platform: Any, publisher: Any = "auto", **more: Any) -> AddonConfig:
    return AddonConfig(
        platform=platform,
        publisher=publisher,
        quote_helper=True,
        collateral=True,
        attestation=True,
        attested_certificates=True,
        metrics=True,
        autoscaling=True,
        **more,
    )


@pytest.mark.parametrize("platform", ["intel", "simulated"])
@pytest.mark.parametrize("publisher", ["auto", "devices", "node-status", "dra"])
def test_the_device_plugin_takes_its_settings(platform: str, publisher: str) -> None:
    found = daemon_settings(config(platform, publisher, epc_reserve_mib=3, overcommit=1.5), "device-plugin")
    found.check()
    assert (found.publisher, found.reserve_mib, found.overcommit) == (publisher, 3, 1.5)
    assert found.node_name == "node-1"
    assert found.wait_for_sgx
    assert (found.simulated_machine is None) == (platform == "intel")


@pytest.mark.parametrize(
    ("settings", "slots", "namespaces"),
    [
        ({}, 0, frozenset()),
        ({"quote_helper": True}, 0, frozenset()),
        ({"provision_grants": ("apps/one", "apps/two", "more/*")}, 110, frozenset({"apps", "more"})),
        ({"quote_helper": True, "provision_grants": ("apps/*",)}, 110, frozenset({"apps"})),
    ],
)
def test_the_provisioning_device_is_for_those_who_were_granted_it(
    settings: dict[str, Any], slots: int, namespaces: frozenset[str]
) -> None:
    found = daemon_settings(AddonConfig(**settings), "device-plugin")
    found.check()
    assert found.provision_limit == slots
    assert found.namespaces == namespaces


@pytest.mark.parametrize("platform", ["intel", "simulated"])
def test_the_quote_helper_takes_its_settings(platform: str) -> None:
    found = daemon_settings(config(platform), "quote-helper")
    assert (found.platform, found.replace, found.when_replaced) == (platform, True, "wait")
    assert found.socket == QuoteHelperConfig().socket
    assert found.http.endswith(f":{node_daemons.QUOTE_HELPER_PORT}")
    assert found.drain_timeout < node_daemons.DRAIN


def test_the_metrics_api_and_its_exporters_take_theirs() -> None:
    found = daemon_settings(config("intel"), "metrics-api")
    found.check()
    assert found.names() == names_of(METRICS_API)
    assert found.ca == MetricsApiConfig().ca
    for component in ("metrics", "quote-helper"):
        exporter = daemon_settings(config("intel"), component)
        assert exporter.https.endswith(f":{EXPORTER_PORT}")
        assert exporter.https_ca == str(Path(found.exporters_ca).parent)
        workload = {"metrics": METRICS, "quote-helper": QUOTE_HELPER}[component]
        assert EXPORTERS[component] == f"{workload.name}.{NAMESPACE}.svc"
        assert workload.component == component


@pytest.mark.parametrize("platform", ["intel", "simulated"])
def test_the_others_take_theirs(platform: str) -> None:
    service = daemon_settings(config(platform, collateral_fmspcs=("00906ed50000", "tdx:b0c06f000000")), "collateral")
    service.check()
    assert [tee for tee, _ in parse_fmspcs(service.fmspcs)] == ["sgx", "tdx"]
    assert service.tls_secret == "confcom-collateral-tls"
    for component in ("collateral", "attestation"):
        # A volume is in one place at a time: where there is one, no other pod answers, and leaving only takes time.
        for volume in ("1Gi", ""):
            stored = config(platform, collateral_storage=volume, attestation_storage=volume)
            assert daemon_settings(stored, component).leave_after == (0 if volume else LEAVE_AFTER)
        shared = config(platform, collateral_database="db", attestation_database="db")
        assert daemon_settings(shared, component).leave_after == LEAVE_AFTER
    assert LEAVE_AFTER + service.drain_timeout < 30
    daemon_settings(config(platform), "metrics").check()
    found = daemon_settings(config(platform, provision_grants=("apps/one",)), "webhook")
    found.check()
    assert found.provision_grants == "apps/one"
    assert found.ca == webhook.CA_FOLDER
    assert found.client_ca is None
    known = daemon_settings(config(platform, webhook_client_ca="api-client-ca"), "webhook")
    assert known.client_ca == f"{webhook.CLIENT_CA_FOLDER}/ca.crt"
    assert found.leave_after + found.drain_timeout < 30


def test_a_wrong_setting_would_be_noticed() -> None:
    with pytest.raises(ConfigError):
        load(QuoteHelperConfig, service="quote-helper", environment={"CONFCOM_QUOTE_HELPER_REPLACE": "?"}, flags={})


def test_the_webhook_leaves_the_namespace_of_the_addon_alone() -> None:
    assert admission.NAMESPACE == NAMESPACE


@pytest.mark.parametrize("publisher", ["auto", "dra"])
def test_the_way_to_the_helper_is_there_with_the_helper(publisher: str) -> None:
    """The plugin brings pods to the folder where the helper's socket is, by the resource that the webhook adds."""
    settings = config("simulated", publisher)
    found = daemon_settings(settings, "device-plugin")
    assert f"{found.helper_folder}/aesm.socket" == daemon_settings(settings, "quote-helper").socket
    assert found.helper_resource == epc.HELPER
    assert daemon_settings(settings, "webhook").wiring == "plugin"
    assert daemon_settings(AddonConfig(), "device-plugin").helper_folder == ""


def test_the_plugins_folders_are_the_kubelets() -> None:
    defaults = DevicePluginConfig()
    assert defaults.plugin_dir == f"{node_daemons.KUBELET}/device-plugins"
    assert defaults.pod_resources_socket.startswith(f"{node_daemons.KUBELET}/pod-resources/")
    assert defaults.registry_dir == f"{node_daemons.KUBELET}/plugins_registry"
    assert defaults.cdi_dir == node_daemons.CDI


@pytest.mark.parametrize("platform", ["intel", "simulated"])
def test_the_certificate_signer_takes_its_settings(platform: str) -> None:
    found = daemon_settings(config(platform), "certificate-signer")
    found.check()
    marked = "-simulated" if platform == "simulated" else ""
    assert found.secret == f"confcom-certificate-signer{marked}-ca"
    assert found.config_map == f"confcom-attested-pods-ca{marked}"
    assert bool(found.trust_roots) == (platform == "simulated")


@pytest.mark.parametrize(
    "change",
    [
        {"image": "registry.example/confcom:2"},
        {"image_pull_policy": "Always"},
        {"image_pull_secrets": ("pull",)},
        {"tolerations": ("sgx=only:NoSchedule",)},
        {"node_selector": ("pool=sgx",)},
        {"collateral_database": "other"},
        {"collateral_database_port": 5433},
        {"collateral_replicas": 3},
        {"platform": "simulated"},
        {"api_ports": (7443,)},
    ],
    ids=str,
)
def test_a_migration_with_other_pods_has_another_name(change: dict[str, Any]) -> None:
    """Kubernetes refuses another template of a Job: the change of a setting would fail."""
    before = {"collateral": True, "collateral_database": "db", "image": "registry.example/confcom:1"}
    rendered = [render(AddonConfig(**found), version="1") for found in (before, before | change)]
    first, second = (
        {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "Job"} for found in rendered
    )
    assert first
    assert all(second[name] == first[name] for name in first.keys() & second.keys())
