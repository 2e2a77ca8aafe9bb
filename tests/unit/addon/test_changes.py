"""Enable, update, disable and purge, against a stand-in of the Kubernetes API on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from confcom.addon.changes import Addon, to_enable, to_update
from confcom.cluster.client import ClusterObjects, Ref, kind_of
from confcom.errors import ClusterError, ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import MANAGED_BY, NAMESPACE, labels
from confcom.manifests.simulated import cleanup
from confcom.wiring import world_documents
from object_api import GUARD, ObjectApi

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATE = ("configmaps", NAMESPACE, "confcom-addon")
WORLD = ("secrets", NAMESPACE, "confcom-simulated-world")
CA = ("secrets", NAMESPACE, "sgx-webhook-ca")
PLUGIN = ("daemonsets", NAMESPACE, "sgx-device-plugin")
HELPER = ("daemonsets", NAMESPACE, "sgx-quote-helper")
SIMULATED = {"platform": "simulated", "simulated_epc": "64Mi", "image": "localhost/confcom:dev"}
LEGACY = (
    Ref("v1", "Secret", NAMESPACE, "sgx-webhook-tls"),
    Ref("rbac.authorization.k8s.io/v1", "Role", NAMESPACE, "sgx-webhook"),
    Ref("rbac.authorization.k8s.io/v1", "RoleBinding", NAMESPACE, "sgx-webhook"),
    Ref("scheduling.k8s.io/v1", "PriorityClass", "", "confcom-quote-helper"),
)
"""What the add-on of commit 897114d made, and this one does not: its webhook issued its CA itself."""


@pytest.fixture
def api() -> Iterator[ObjectApi]:
    with ObjectApi() as found:
        yield found


@pytest.fixture
def told() -> list[str]:
    return []


@asynccontextmanager
async def opened(api: ObjectApi, folder: Path, told: list[str]) -> AsyncIterator[Addon]:
    """The add-on of this cluster; what it says goes to `told`."""
    async with ClusterObjects.open(api.kubeconfig(folder), None, "confcom-addon") as cluster, asyncio.timeout(GUARD):
        yield Addon(cluster, version="1", now=NOW, report=told.append)


@pytest.fixture
async def addon(api: ObjectApi, tmp_path: Path, told: list[str]) -> AsyncIterator[Addon]:
    async with opened(api, tmp_path, told) as found:
        yield found


async def enable(addon: Addon, wait: float | None = None, **changes: Any) -> None:
    await addon.change(partial(to_enable, SIMULATED | changes), wait=wait)


async def update(addon: Addon, wait: float | None = None, **changes: Any) -> None:
    await addon.change(partial(to_update, changes), wait=wait)


def place(ref: Ref) -> tuple[str, str, str]:
    plural = kind_of(ref.api_version, ref.kind).resource._api_info.plural
    return (plural, ref.namespace, ref.name)


def versions(api: ObjectApi) -> dict[tuple[str, str, str], str]:
    return {place: found["metadata"]["resourceVersion"] for place, found in api.objects.items()}


async def test_an_enable_makes_what_is_rendered_and_a_second_one_changes_nothing(
    addon: Addon, api: ObjectApi, told: list[str]
) -> None:
    await enable(addon, wait=60, quote_helper=True, metrics=True)
    state = await addon.state()
    assert state is not None
    assert state.enabled
    rendered = {place(Ref.of(one)) for one in render(state.config, version="1")}
    assert rendered | {WORLD, CA} == {place for place in api.objects if place[2] != "confcom-simulated-root"}
    assert "sgx-device-plugin 1/1, sgx-quote-helper 1/1, sgx-metrics 1/1, sgx-webhook 2/2" in told
    before = versions(api)
    changed = [change for change in await addon.plan(state.config) if change.verb != "unchanged"]
    assert changed == []
    await enable(addon, quote_helper=True)
    assert versions(api) == before


async def test_monitors_come_and_go_with_the_operator(addon: Addon, api: ObjectApi) -> None:
    def monitors() -> list[str]:
        return sorted(name for plural, _, name in api.objects if plural in ("servicemonitors", "prometheusrules"))

    await enable(addon)
    assert monitors() == []
    with pytest.raises(ConfigError, match="does not know the kinds ServiceMonitor, PrometheusRule"):
        await update(addon, monitoring="operator")
    api.unknown.clear()
    await update(addon)
    assert monitors() == ["confcom", "sgx-device-plugin-metrics", "sgx-webhook-metrics"]
    await update(addon, monitoring="annotations")
    assert monitors() == []


async def test_a_plan_writes_nothing(addon: Addon, api: ObjectApi) -> None:
    changes = await addon.plan(to_enable(SIMULATED, None))
    assert {change.verb for change in changes} == {"create"}
    assert "DaemonSet confcom-system/sgx-device-plugin" in {str(change.ref) for change in changes}
    assert api.objects == {}


async def test_an_update_keeps_what_it_does_not_mention_and_deletes_what_is_not_wanted_any_more(
    addon: Addon, api: ObjectApi, told: list[str]
) -> None:
    await enable(addon, quote_helper=True, metrics=True, epc_reserve_mib=3)
    await update(addon, metrics=False)
    found = await addon.state()
    assert found is not None
    assert (found.config.quote_helper, found.config.metrics, found.config.epc_reserve_mib) == (True, False, 3)
    assert HELPER in api.objects
    assert not [place for place in api.objects if place[2] == "sgx-metrics"]
    assert "deleted DaemonSet confcom-system/sgx-metrics" in told


async def test_objects_of_others_in_the_namespace_stay(addon: Addon, api: ObjectApi) -> None:
    others = {"v1": ("configmaps", "ConfigMap"), "apps/v1": ("daemonsets", "DaemonSet")}
    for version, (plural, kind) in others.items():
        labels = {"app.kubernetes.io/part-of": "another"}
        api.put(
            plural,
            {
                "apiVersion": version,
                "kind": kind,
                "metadata": {"name": "theirs", "namespace": NAMESPACE, "labels": labels},
            },
        )
    await enable(addon)
    await update(addon, overcommit=2.0)
    await addon.disable(purge=False, wait=None)
    assert {(plural, NAMESPACE, "theirs") for plural, _ in others.values()} <= api.objects.keys()


@pytest.mark.parametrize("enabled", [None, False])
async def test_an_update_needs_an_enabled_add_on(addon: Addon, api: ObjectApi, enabled: bool | None) -> None:
    if enabled is False:
        await enable(addon)
        await addon.disable(purge=False, wait=None)
    before = versions(api)
    with pytest.raises(ConfigError, match="not enabled"):
        await update(addon, metrics=True)
    assert versions(api) == before


async def test_an_update_from_the_first_certificate_scheme_leaves_nothing_of_it(addon: Addon, api: ObjectApi) -> None:
    await enable(addon)
    for ref in LEGACY:
        metadata = {"name": ref.name, "labels": labels("webhook")} | ({"namespace": NAMESPACE} if ref.namespace else {})
        api.put(place(ref)[0], {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata})
    configurations = [found for found in api.objects if found[0].endswith("webhookconfigurations")]
    for found in configurations:
        owners = [{"manager": "confcom-webhook"}, {"manager": "confcom-addon"}]
        metadata = api.objects[found]["metadata"] | {"managedFields": owners}
        api.put(found[0], api.objects[found] | {"metadata": metadata})
    del api.objects[CA]
    order: list[tuple[str, str, str]] = []
    api.before_write = lambda verb, place: order.append(place)
    await update(addon)
    assert not {place(ref) for ref in LEGACY} & api.objects.keys()
    bundle = api.objects[CA]["data"]["ca.crt"]
    entries = [entry for found in configurations for entry in api.objects[found]["webhooks"]]
    assert {entry["clientConfig"]["caBundle"] for entry in entries} == {bundle}
    for found in configurations:
        assert api.objects[found]["metadata"]["managedFields"] == [{"manager": "confcom-addon"}]
    # The API server trusts the CA before any replica can serve by it.
    assert max(order.index(found) for found in configurations) < order.index(CA)
    rights = api.objects["clusterroles", "", "confcom:sgx-webhook"]["rules"]
    assert rights == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]


async def test_a_disable_keeps_settings_and_world_for_the_next_enable(
    addon: Addon, api: ObjectApi, told: list[str]
) -> None:
    await enable(addon, epc_reserve_mib=3)
    world = api.objects[WORLD]["data"]
    assert await addon.disable(purge=False, wait=60)
    assert api.objects.keys() == {("namespaces", "", NAMESPACE), STATE, WORLD}
    deleted = [line for line in told if line.startswith("deleted ")]
    # The plugin goes before the account by which it reaches the API.
    assert deleted.index(f"deleted DaemonSet {NAMESPACE}/sgx-device-plugin") < deleted.index(
        f"deleted ServiceAccount {NAMESPACE}/sgx-device-plugin"
    )
    with pytest.raises(ConfigError, match="not enabled"):
        await addon.show()
    await addon.change(partial(to_enable, {}), wait=None)
    state = await addon.state()
    assert state is not None
    assert state.config.epc_reserve_mib == 3
    assert api.objects[WORLD]["data"] == world


async def test_the_state_of_the_attestation_service_is_kept_until_a_purge(
    addon: Addon, api: ObjectApi, told: list[str]
) -> None:
    claim = ("persistentvolumeclaims", NAMESPACE, "confcom-attestation-simulated-state")
    kept = f"kept PersistentVolumeClaim {NAMESPACE}/{claim[2]}: policies, audit record and signing keys of the"
    await enable(addon, collateral=True, attestation=True)
    uid = api.objects[claim]["metadata"]["resourceVersion"]
    for leave in (lambda: update(addon, attestation=False), lambda: addon.disable(purge=False, wait=60)):
        await enable(addon, attestation=True)
        told.clear()
        await leave()
        assert not [place for place in api.objects if "attestation" in place[2] and place != claim]
        assert api.objects[claim]["metadata"]["resourceVersion"] == uid
        assert [line for line in told if line.startswith(kept)]
    await addon.disable(purge=True, wait=60)
    assert not [place for place in api.objects if "attestation" in place[2]]


AUTOSCALING = {"metrics": True, "autoscaling": True}
API_SERVICE = ("apiservices", "", "v1beta2.custom.metrics.k8s.io")


def foreign(version: str, name: str = "prometheus-adapter") -> dict[str, Any]:
    spec = {
        "group": "custom.metrics.k8s.io",
        "version": version,
        "service": {"namespace": "monitoring", "name": name, "port": 443},
    }
    metadata = {"name": f"{version}.custom.metrics.k8s.io"}
    return {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2", "v1"])
async def test_beside_another_server_of_custom_metrics_autoscaling_is_refused(
    addon: Addon, api: ObjectApi, version: str
) -> None:
    """Whatever its version: HPA asks one version for all metrics."""
    api.put("apiservices", foreign(version))
    with pytest.raises(ConfigError, match="Service monitoring/prometheus-adapter") as refused:
        await enable(addon, **AUTOSCALING)
    assert version in refused.value.message
    for word in ("prometheus-adapter", "KEDA"):
        assert word in refused.value.advice()
    assert STATE not in api.objects, "nothing was changed"
    await enable(addon, metrics=True)


async def test_a_server_of_other_metrics_is_no_obstacle(addon: Addon, api: ObjectApi) -> None:
    other = foreign("v1beta1", "keda")
    other["spec"]["group"] = "external.metrics.k8s.io"
    other["metadata"]["name"] = "v1beta1.external.metrics.k8s.io"
    api.put("apiservices", other)
    await enable(addon, **AUTOSCALING)
    assert API_SERVICE in api.objects
    await enable(addon, **AUTOSCALING)


async def test_what_another_registers_meanwhile_is_not_taken_over(addon: Addon, api: ObjectApi) -> None:
    def register(verb: str, place: tuple[str, str, str]) -> None:
        if place[0] == "deployments" and API_SERVICE not in api.objects:
            api.put("apiservices", foreign("v1beta2"))

    api.before_write = register
    with pytest.raises(ConfigError, match="monitoring/prometheus-adapter"):
        await enable(addon, **AUTOSCALING)
    assert api.objects[API_SERVICE]["spec"]["service"]["name"] == "prometheus-adapter"


async def test_the_api_service_goes_before_its_server(addon: Addon, api: ObjectApi, told: list[str]) -> None:
    """While what it names does not answer, no namespace can be deleted."""
    server = f"deleted Deployment {NAMESPACE}/confcom-metrics-api"
    for leave in (lambda: update(addon, autoscaling=False), lambda: addon.disable(purge=False, wait=60)):
        await enable(addon, **AUTOSCALING)
        told.clear()
        await leave()
        assert API_SERVICE not in api.objects
        assert told.index(f"deleted APIService {API_SERVICE[2]}") < told.index(server)


async def test_an_api_service_that_leads_elsewhere_by_now_is_left_alone(addon: Addon, api: ObjectApi) -> None:
    await enable(addon, **AUTOSCALING)
    taken = api.objects[API_SERVICE]
    service = {"namespace": "monitoring", "name": "prometheus-adapter", "port": 443}
    api.put("apiservices", taken | {"spec": taken["spec"] | {"service": service}})
    await addon.disable(purge=True, wait=60)
    assert [place for place in api.objects if place[0] != "nodes"] == [API_SERVICE]


async def test_the_api_server_trusts_the_ca_of_the_metrics_api(addon: Addon, api: ObjectApi) -> None:
    await enable(addon, **AUTOSCALING)
    secret = api.objects["secrets", NAMESPACE, "confcom-metrics-api-ca"]["data"]
    assert api.objects[API_SERVICE]["spec"]["caBundle"] == secret["ca.crt"]
    exporters = api.objects["secrets", NAMESPACE, "confcom-exporters-ca"]["data"]
    assert exporters["tls.crt"] != secret["tls.crt"]
    await enable(addon, **AUTOSCALING)
    assert api.objects["secrets", NAMESPACE, "confcom-metrics-api-ca"]["data"] == secret


async def test_a_purge_leaves_neither_objects_nor_marks_on_nodes(addon: Addon, api: ObjectApi, told: list[str]) -> None:
    amounts = {"cpu": "2", "kubernetes.azure.com/sgx_epc_mem_in_MiB": "64"}
    labels = {"confcom.dev/sgx": "true", "confcom.dev/sgx-epc-mib": "64"}
    node = {"metadata": {"name": "n1", "labels": labels}, "status": {"capacity": amounts, "allocatable": amounts}}
    api.put("nodes", {"apiVersion": "v1", "kind": "Node"} | node)
    await enable(addon)
    assert await addon.disable(purge=True, wait=60)
    (left,) = api.objects.values()
    assert left["metadata"]["labels"] == {"confcom.dev/sgx": "true"}
    assert left["status"] == {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}
    assert "emptied the folders of simulated nodes" in told
    assert not await addon.disable(purge=True, wait=60)


async def test_pods_with_claims_are_ended_before_dra_is_left(addon: Addon, api: ObjectApi) -> None:
    await enable(addon, publisher="dra")
    results = [{"driver": "sgx.confcom.dev"}]
    claim = {
        "metadata": {"name": "c", "namespace": "apps"},
        "status": {"allocation": {"devices": {"results": results}}, "reservedFor": [{"name": "user"}]},
    }
    api.put("resourceclaims", claim)
    api.put("pods", {"metadata": {"name": "user", "namespace": "apps"}, "spec": {"nodeName": "n1"}})
    with pytest.raises(ConfigError, match="1 pods hold claims of EPC, which only --publisher dra can end: apps/user"):
        await update(addon, publisher="auto")
    state = await addon.state()
    assert state is not None
    assert state.config.publisher == "dra"


async def test_what_helm_installed_is_shown_and_deleted_too(addon: Addon, api: ObjectApi) -> None:
    """Helm replaces one of the labels of every object that it makes."""
    await enable(addon)
    for (plural, _, _), one in list(api.objects.items()):
        api.put(
            plural, one | {"metadata": one["metadata"] | {"labels": one["metadata"]["labels"] | {MANAGED_BY: "Helm"}}}
        )
    shown = await addon.show()
    assert {one.name for one in shown.progress} == {"sgx-device-plugin", "sgx-webhook"}
    assert await addon.disable(purge=True, wait=60)
    assert not api.objects


async def test_an_image_that_cannot_be_pulled_is_named_with_its_node(addon: Addon, api: ObjectApi) -> None:
    await enable(addon)
    owner = [{"kind": "DaemonSet", "name": "sgx-device-plugin"}]
    waiting = {"reason": "ErrImagePull", "message": 'failed to pull "localhost/nothing:1"'}
    api.put(
        "pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "sgx-device-plugin-x", "namespace": NAMESPACE, "ownerReferences": owner},
            "spec": {"nodeName": "n1"},
            "status": {
                "phase": "Pending",
                "containerStatuses": [{"name": "device-plugin", "ready": False, "state": {"waiting": waiting}}],
            },
        },
    )
    api.running = False
    with pytest.raises(ClusterError) as caught:
        await update(addon, image="localhost/nothing:1", wait=1)
    assert "not ready: sgx-device-plugin 0/1" in caught.value.message
    assert 'pod sgx-device-plugin-x on n1: ErrImagePull: failed to pull "localhost/nothing:1"' in caught.value.message
    assert "Name an image that the nodes can pull, with --image" in str(caught.value.advice())


def _marked_node() -> dict[str, Any]:
    amounts = {"cpu": "2", "kubernetes.azure.com/sgx_epc_mem_in_MiB": "64", "sgx.confcom.dev/quote-helper-epc": "8"}
    metadata = {
        "name": "n1",
        "labels": {"confcom.dev/sgx": "true", "confcom.dev/sgx-epc-mib": "64"},
        "annotations": {"confcom.dev/sgx-epc-boot": "b", "others": "stay"},
    }
    status = {"capacity": amounts, "allocatable": amounts}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}


async def test_nodes_are_cleaned_before_the_chart_is_uninstalled(addon: Addon, api: ObjectApi) -> None:
    """With the rights that the chart's Job has: two DaemonSets to delete, nodes to list, their status to patch."""
    await enable(addon, quote_helper=True)
    before = api.objects.keys() - {PLUGIN, HELPER}
    api.put("nodes", _marked_node())
    writes: list[tuple[str, str, str, str]] = []
    api.before_write = lambda verb, place: writes.append((verb, *place))
    await addon.clean_nodes(wait=60)
    assert writes == [("DELETE", *HELPER), ("DELETE", *PLUGIN), ("PATCH", "nodes", "", "n1")]
    assert api.objects.keys() - {("nodes", "", "n1")} == before
    node = api.objects["nodes", "", "n1"]
    assert node["metadata"]["labels"] == {"confcom.dev/sgx": "true"}
    assert node["metadata"]["annotations"] == {"others": "stay"}
    assert node["status"] == {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}
    await addon.clean_nodes(wait=60)
    assert [verb for verb, *_ in writes].count("PATCH") == 1


async def test_nodes_are_clean_only_when_their_folders_are(addon: Addon, api: ObjectApi) -> None:
    """The chart's DaemonSet empties them; the next Job of the same kind waits for it."""
    (daemon_set, _) = cleanup(AddonConfig(platform="simulated"), version="1")
    api.put("daemonsets", daemon_set)
    api.put("nodes", _marked_node())
    api.running = False
    with pytest.raises(ClusterError, match="folders of simulated nodes are not empty yet: confcom-cleanup 0/1"):
        await addon.clean_nodes(wait=0.1)
    assert "confcom.dev/sgx-epc-mib" in api.objects["nodes", "", "n1"]["metadata"]["labels"]
    api.running = True
    await addon.clean_nodes(wait=60)
    assert "confcom.dev/sgx-epc-mib" not in api.objects["nodes", "", "n1"]["metadata"]["labels"]


async def test_the_root_of_a_world_is_published_from_its_machine_file(addon: Addon, api: ObjectApi) -> None:
    machine_file, root = world_documents(None, NOW)
    writes: list[tuple[str, str, str, str]] = []
    api.before_write = lambda verb, place: writes.append((verb, *place))
    await addon.publish_root(machine_file)
    place = ("configmaps", NAMESPACE, "confcom-simulated-root")
    assert writes == [("PATCH", *place)]
    assert api.objects[place]["data"] == {"root_ca.pem": root.decode()}
