"""The Helm chart, rendered by Helm itself: the objects of `confcom addon manifests`, and what only the chart has."""

from __future__ import annotations

import itertools
import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from confcom.addon.plan import NODE_RESOURCES, OLDEST, PLUGIN_MARKS
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import IssuingCa
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET, cleanup, world_objects
from confcom.pki.serving_pair import Authority
from confcom.wiring import world_documents
from helm import (
    CHART,
    COMPONENTS,
    KEEP,
    MADE_ANEW,
    Helm,
    Objects,
    by_name,
    in_order,
    pods_of,
    rendered_by,
    with_all_components,
)

VERSION = version("confcom")
HOOK = "helm.sh/hook"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
pytestmark = pytest.mark.timeout(1800)


# Where the chart has a setting of `confcom addon`. Those of `OTHER_FORMS` are made in `_values` below.
PATHS = {
    "image_pull_policy": "image.pullPolicy",
    "image_pull_secrets": "image.pullSecrets",
    "platform": "platform",
    "simulated_epc": "simulatedEpc",
    "quote_helper": "quoteHelper.enabled",
    "webhook": "webhook.enabled",
    "collateral": "collateral.enabled",
    "collateral_upstream": "collateral.upstream",
    "collateral_fmspcs": "collateral.fmspcs",
    "collateral_tcb_sets": "collateral.tcbSets",
    "collateral_tls_secret": "collateral.tlsSecret",
    "collateral_database": "collateral.database.secret",
    "collateral_database_port": "collateral.database.port",
    "collateral_replicas": "collateral.replicas",
    "collateral_url": "collateral.url",
    "attestation": "attestation.enabled",
    "attestation_url": "attestation.url",
    "attestation_tls_secret": "attestation.tlsSecret",
    "attestation_administrators": "attestation.administrators",
    "attestation_keys": "attestation.keys",
    "attestation_pin_secret": "attestation.pinSecret",
    "attestation_database": "attestation.database.secret",
    "attestation_database_port": "attestation.database.port",
    "attestation_replicas": "attestation.replicas",
    "attested_certificates": "attestedCertificates.enabled",
    "approve_for": "attestedCertificates.approveFor",
    "metrics": "metrics.enabled",
    "monitoring": "monitoring",
    "autoscaling": "autoscaling.enabled",
    "epc_enforcement": "metrics.epcEnforcement",
    "publisher": "epc.publisher",
    "epc_reserve_mib": "epc.reserveMiB",
    "overcommit": "epc.overcommit",
    "quote_helper_epc_mib": "quoteHelper.epcMiB",
    "quote_helper_groups": "quoteHelper.groups",
    "quote_helper_seccomp": "quoteHelper.seccompProfile",
    "expected_signers": "quoteHelper.expectedSigners",
    "provision_grants": "provisionGrants",
    "webhook_replicas": "webhook.replicas",
    "webhook_namespaces": "webhook.namespaces",
    "webhook_client_ca": "webhook.clientCa",
    "oversized": "webhook.oversized",
    "api_ports": "apiServer.ports",
    "api_addresses": "apiServer.addresses",
}
OTHER_FORMS = {
    "image",
    "collateral_storage",
    "attestation_storage",
    "node_selector",
    "tolerations",
    "monitoring_labels",
}


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chart's values for settings of the add-on."""
    config = AddonConfig(**settings)
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in PATHS:
            _put(found, PATHS[name], list(value) if isinstance(value, tuple) else value)
    if config.image:
        name, _, digest = config.image.partition("@")
        _put(found, "image.repository", name)
        _put(found, "image.digest", digest)
    for service in ("collateral", "attestation"):
        storage_class, _, size = getattr(config, f"{service}_storage").rpartition("/")
        _put(found, f"{service}.storage", {"size": size, "className": storage_class})
    _put(found, "serviceMonitor.labels", config.monitor_labels())
    return found | {"nodeSelector": config.node_labels(), "tolerations": config.tolerated()}


def _put(values: dict[str, Any], path: str, value: object) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
    values[last] = value


def test_every_setting_of_the_add_on_is_a_value_of_the_chart() -> None:
    assert {*PATHS, *OTHER_FORMS} == {*AddonConfig.__struct_fields__}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    config = AddonConfig()
    for name, path in PATHS.items():
        value = defaults
        for part in path.split("."):
            value = value[part]
        wanted = getattr(config, name)
        assert value == (list(wanted) if isinstance(wanted, tuple) else wanted), name


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


EVERYTHING: dict[str, Any] = {
    "quote_helper": True, "collateral": True, "attestation": True, "attested_certificates": True, "metrics": True,
}  # fmt: skip
# What decides which objects there are, and what they look like.
SHAPES: list[dict[str, Any]] = [
    {"platform": platform, "publisher": publisher} | more
    for platform, publisher, more in itertools.product(
        ("intel", "simulated"),
        ("auto", "node-status", "devices", "dra"),
        ({}, {"quote_helper": True}, EVERYTHING | {"epc_enforcement": True, "webhook_namespaces": "labelled"}),
    )
]
DETAILS: list[dict[str, Any]] = [
    {"image": f"registry.example:5000/x@sha256:{'0' * 64}", "image_pull_policy": "Always", "webhook": False},
    {"simulated_epc": "64Gi,64Gi", "platform": "simulated", "quote_helper": True, "quote_helper_epc_mib": 9},
    {"epc_reserve_mib": 12_000_000, "overcommit": 1.05, "webhook_replicas": 3, "oversized": "warn"},
    {"provision_grants": ("apps/one", "apps/two", "more/*"), "collateral": True, "collateral_upstream": "https://x:1/"},
    {
        "collateral": True,
        "quote_helper": True,
        "collateral_fmspcs": ("00906ed50000", "tdx:b0c06f000000"),
        "collateral_tcb_sets": ("19", "canary=early"),
        "collateral_storage": "standard/2Gi",
        "collateral_tls_secret": "given",
    },
    {"collateral": True, "collateral_storage": "512Mi", "platform": "simulated"},
    {"collateral": True, "collateral_storage": "512Mi", "collateral_database": "db"},
    {
        "collateral": True,
        "collateral_database": "db",
        "collateral_database_port": 6432,
        "collateral_replicas": 3,
        "platform": "simulated",
    },
    {"collateral": True, "collateral_upstream": "thim", "collateral_url": "https://unused.example"},
    {"attestation": True, "attestation_storage": "", "attestation_tls_secret": "given"},
    {
        "attestation": True,
        "attestation_administrators": "ops",
        "attestation_keys": "pkcs11:token=attest%20ation?module-path=/usr/lib/softhsm/libsofthsm2.so",
        "attestation_pin_secret": "hsm-pin",
    },
    {
        "attestation": True,
        "attestation_keys": "pkcs11:token=t?module-path=/x.so",
        "attestation_pin_secret": "hsm-pin",
        "attestation_database": "db",
    },
    {"attestation": True, "attestation_storage": "fast/2Gi", "attestation_url": "https://attest.example:8443/a"},
    {"attestation": True, "attestation_database": "db", "attestation_url": "https://attest.example"},
    {
        "attestation": True,
        "attestation_database": "db",
        "attestation_database_port": 6432,
        "attestation_replicas": 3,
        "attestation_storage": "",
        "collateral": True,
        "platform": "simulated",
        "image_pull_secrets": ("one", "two"),
    },
    {"attestation": True, "attestation_url": "https://[fd00::1]", "collateral_url": "https://pccs.example:9443"},
    {"quote_helper": True, "collateral_url": "https://pccs.example:9443/sgx/certification/v4/"},
    {"quote_helper": True, "collateral_url": "https://[fd00::1]:9443/"},
    {
        "quote_helper": True,
        "quote_helper_groups": (105, 2_000_000_000),
        "collateral_url": "https://pccs.example/here/",
        "publisher": "dra",
        "provision_grants": ("apps/*",),
    },
    # Names that YAML would take for numbers.
    {"collateral": True, "collateral_tls_secret": "123", "collateral_database": "1e3", "webhook_client_ca": "789"},
    {"webhook_client_ca": "api-client-ca", "api_addresses": ("10.240.0.1/32", "fd00::/64")},
    {"metrics": True, "autoscaling": True, "quote_helper": True, "api_addresses": ("10.240.0.1/32",)},
    {"metrics": True, "autoscaling": True, "platform": "simulated", "quote_helper": True, "webhook": False},
    {"monitoring": "operator", "monitoring_labels": ("release=prometheus",), "quote_helper": True, "metrics": True},
    {"monitoring": "operator", "collateral": True, "attestation": True, "webhook": False},
    {"monitoring": "operator", "collateral": True, "attestation": True, "platform": "simulated"},
    {"monitoring": "off"},
    {
        "attested_certificates": True,
        "collateral_url": "https://pccs.example:9443",
        "approve_for": ("clusterissuers.cert-manager.io/vault", "issuers.cert-manager.io/shop.ca"),
    },
    {"attested_certificates": True, "collateral": True, "platform": "simulated", "monitoring": "operator"},
    {"api_ports": (443, 16443), "metrics": True, "image_pull_secrets": ("one", "two")},
    {"quote_helper": True, "quote_helper_seccomp": "localhost/confcom/quote-helper.json"},
    {"quote_helper": True, "expected_signers": ("00" * 32, "Fe" * 32), "platform": "simulated"},
    {"quote_helper": True, "provision_grants": ("confcom-system/x", "apps/*")},
    {
        "metrics": True,
        "node_selector": ("example.com/empty=", "pool=acc"),
        "tolerations": ("*", "key", "key=value", "a.b/key=value:NoExecute", "key:NoSchedule", "key=:NoSchedule"),
    },
]


@pytest.mark.parametrize("settings", SHAPES + DETAILS, ids=str)
def test_the_chart_renders_the_objects_of_addon_manifests(helm: Helm, settings: dict[str, Any]) -> None:
    found = by_name(rendered_by(helm, _values(settings), "--no-hooks"))
    objects = render(AddonConfig(**settings), version=VERSION, cas=_cas_of(found))
    if settings.get("platform") == "simulated":
        objects += _world_of(found)
    wanted = by_name(json.loads(json.dumps(objects)))
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert in_order(found[name]) == in_order(one)


def _cas_of(found: Objects) -> dict[str, IssuingCa]:
    """What the chart made, by Secret: CAs that can issue certificates."""
    cas = {}
    for name in ("sgx-webhook-ca", "confcom-metrics-api-ca", "confcom-exporters-ca"):
        if f"Secret/{name}" in found:
            data = {file: b64decode(text) for file, text in found[f"Secret/{name}"]["data"].items()}
            assert Authority.parse(data["tls.crt"], data["tls.key"]) is not None
            assert data["ca.crt"] == data["tls.crt"]
            cas[name] = IssuingCa(data["tls.crt"], data["tls.key"], data["ca.crt"])
    return cas


def _world_of(found: Objects) -> list[dict[str, Any]]:
    """What the chart made: a world of its own, which machines can be made of. A hook publishes its root."""
    machine_file = b64decode(found[f"Secret/{WORLD_SECRET}"]["data"][WORLD_KEY])
    secret, root = world_objects(*world_documents(machine_file, NOW))
    del root["data"]
    return [one | {"metadata": _with_version(one["metadata"])} for one in (secret, root)]


def _with_version(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata | {"labels": metadata["labels"] | {"app.kubernetes.io/version": VERSION}}


def test_two_installations_have_two_worlds(helm: Helm) -> None:
    worlds = {
        by_name(rendered_by(helm, {"platform": "simulated"}))[f"Secret/{WORLD_SECRET}"]["data"][WORLD_KEY]
        for _ in range(2)
    }
    assert len(worlds) == 2


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ({"registry": "registry.example:5000"}, f"registry.example:5000/confcom/confcom:{VERSION}"),
        ({"repository": "mirror/confcom", "tag": "1.2"}, "mirror/confcom:1.2"),
        ({"tag": "1.2", "digest": f"sha256:{'0' * 64}"}, f"confcom/confcom:1.2@sha256:{'0' * 64}"),
        ({"digest": f"sha256:{'0' * 64}"}, f"confcom/confcom@sha256:{'0' * 64}"),
    ],
    ids=str,
)
def test_every_container_has_the_image_of_its_parts(helm: Helm, image: dict[str, str], wanted: str) -> None:
    values = {"image": image | {"pullSecrets": ["registry-key"]}, "platform": "simulated"}
    objects = rendered_by(helm, with_all_components(values))
    pods = list(pods_of(objects))
    assert len(pods) == 12  # eight components, three Jobs and a DaemonSet of hooks
    for pod in pods:
        assert pod["imagePullSecrets"] == [{"name": "registry-key"}]
        assert {one["image"] for one in (*pod["containers"], *pod.get("initContainers", ()))} == {wanted}
    assert by_name(objects)["ConfigMap/confcom-addon"]["data"]["image"] == wanted


OWN: dict[str, Any] = {
    "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi", "cpu": "3"}},
    "nodeSelector": {"example.com/pool": "own"},
    "tolerations": [{"key": "own", "operator": "Exists", "tolerationSeconds": 5}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "own-priority",
    "annotations": {"example.com/a": "1"},
    "labels": {"example.com/l": "2"},
    "podAnnotations": {"example.com/pa": "3"},
    "podLabels": {"example.com/pl": "4"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_components_own_values_change_it_alone(helm: Helm, component: str) -> None:
    own = dict(OWN) if component == "devicePlugin" else OWN | {"enabled": True}
    before = by_name(rendered_by(helm, with_all_components({}), "--no-hooks"))
    after = by_name(rendered_by(helm, with_all_components({component: own}), "--no-hooks"))
    differing = {name for name in before if before[name] != after[name]} - MADE_ANEW
    assert differing == {COMPONENTS[component]}
    old, new = before[COMPONENTS[component]], after[COMPONENTS[component]]
    assert new["metadata"]["labels"] == old["metadata"]["labels"] | OWN["labels"]
    assert new["metadata"]["annotations"] == OWN["annotations"]
    template = new["spec"]["template"]
    assert template["metadata"]["labels"] == old["spec"]["template"]["metadata"]["labels"] | OWN["podLabels"]
    assert template["metadata"]["annotations"] == OWN["podAnnotations"]
    was, pod = old["spec"]["template"]["spec"], template["spec"]
    assert pod["nodeSelector"] == was.get("nodeSelector", {}) | OWN["nodeSelector"]
    assert pod["tolerations"] == was["tolerations"] + OWN["tolerations"]
    assert pod["affinity"] == was.get("affinity", {}) | OWN["affinity"]
    assert pod["priorityClassName"] == "own-priority"
    (container,), (earlier,) = pod["containers"], was["containers"]
    assert container["env"] == earlier["env"] + OWN["extraEnv"]
    assert container["resources"]["requests"] == earlier["resources"]["requests"] | OWN["resources"]["requests"]
    assert container["resources"]["limits"] == earlier["resources"]["limits"] | OWN["resources"]["limits"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_components_own_values_may_be_taken_away(helm: Helm, component: str) -> None:
    nothing = {} if component == "devicePlugin" else {"enabled": True}
    needed = {"metrics": {"enabled": True}} if component == "autoscaling" else {}
    found = by_name(rendered_by(helm, needed | {component: nothing | dict.fromkeys(OWN)}, "--no-hooks"))
    assert COMPONENTS[component] in found


@pytest.mark.parametrize("settings", [{"monitoring": "operator"}, {"serviceMonitor": {"enabled": True}}], ids=str)
def test_monitors_cover_every_component_that_has_metrics(helm: Helm, settings: dict[str, Any]) -> None:
    more = {"serviceMonitor": settings.get("serviceMonitor", {}) | {"interval": "9s"}}
    found = by_name(rendered_by(helm, with_all_components(settings | more)))
    monitors = [one for one in found.values() if one["kind"] == "ServiceMonitor"]
    assert len(monitors) == 8
    for one in monitors:
        (endpoint,) = one["spec"]["endpoints"]
        assert endpoint["interval"] == "9s"
        chosen = one["spec"]["selector"]["matchLabels"].items()
        services = [
            one for one in found.values() if one["kind"] == "Service" and chosen <= one["metadata"]["labels"].items()
        ]
        ports = [port["name"] for service in services for port in service["spec"]["ports"]]
        assert ports.count(endpoint["port"]) == 1  # no page is scraped twice
    for service in ("confcom-collateral", "confcom-attestation"):
        tls = found[f"ServiceMonitor/{service}"]["spec"]["endpoints"][0]["tlsConfig"]
        assert tls["ca"]["configMap"]["name"] == f"{service}-ca"
        assert "insecureSkipVerify" not in tls


@pytest.mark.parametrize("api", ["", "monitoring.coreos.com/v1/ServiceMonitor,monitoring.coreos.com/v1/PrometheusRule"])
def test_monitors_are_there_where_the_cluster_has_the_kinds(helm: Helm, api: str) -> None:
    found = by_name(rendered_by(helm, {}, *(["--api-versions", api] if api else [])))
    assert ("PrometheusRule/confcom" in found) is bool(api)
    annotations = found["Service/sgx-webhook-metrics"]["metadata"].get("annotations", {})
    assert annotations.get("prometheus.io/scrape") == (None if api else "true")


def test_an_uninstall_leaves_the_state_of_the_attestation_service(helm: Helm) -> None:
    values = with_all_components({"collateral": {"enabled": True, "storage": {"size": "1Gi"}}})
    done = helm("template", "confcom", values=values)
    kept = {
        one["metadata"]["name"]
        for one in yaml.load_all(done.stdout, yaml.CSafeLoader)
        if one and KEEP in json.dumps(one)
    }
    assert kept == {"confcom-attestation-state"}


def _hooks(objects: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in objects:
        hook = one["metadata"].get("annotations", {}).get(HOOK)
        if hook:
            found.setdefault(hook, []).append(one)
    return found


@pytest.mark.parametrize("platform", ["intel", "simulated"])
@pytest.mark.parametrize("publisher", ["auto", "dra"])
def test_hooks_and_test_pods_are_restricted(helm: Helm, platform: str, publisher: str) -> None:
    """But for the pod that empties a simulated node's folder: it is the one that `confcom addon disable` uses."""
    values = with_all_components({"platform": platform, "epc": {"publisher": publisher}})
    hooks = _hooks(rendered_by(helm, values))
    assert hooks.keys() == {"pre-delete", "test"} | (
        {"post-install,post-upgrade"} if platform == "simulated" else set()
    )
    for one in itertools.chain.from_iterable(hooks.values()):
        assert "hook-succeeded" in one["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        if one["kind"] == "DaemonSet":
            _same_as_the_purge(one)
        elif one["kind"] in ("Job", "Pod"):
            _assert_restricted(one["spec"]["template"]["spec"] if one["kind"] == "Job" else one["spec"])


def _assert_restricted(pod: dict[str, Any]) -> None:
    """The level `restricted` of Pod Security, and a root file system that cannot be written."""
    assert not {"hostPID", "hostIPC", "hostNetwork"} & pod.keys()
    assert all({"emptyDir", "secret"} & volume.keys() for volume in pod.get("volumes", ()))
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["runAsNonRoot"], context["readOnlyRootFilesystem"]) == (True, True)
        assert (context["allowPrivilegeEscalation"], context["privileged"]) == (False, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def _same_as_the_purge(found: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(cleanup(AddonConfig(platform="simulated"), version=VERSION)[0]))
    pods = (one["spec"]["template"]["spec"] for one in (found, wanted))
    assert next(pods) == next(pods)
    assert found["metadata"]["name"] == wanted["metadata"]["name"]


def test_the_rights_of_hooks_are_what_they_do(helm: Helm) -> None:
    """Named objects, and of nodes no more than a device plugin may; a policy admits removals alone."""
    objects = by_name(rendered_by(helm, {"platform": "simulated"}))
    assert objects["Role/confcom-publish-root"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "verbs": ["patch"],
            "resourceNames": ["confcom-simulated-root"],
        }
    ]
    (rule,) = objects["Role/confcom-cleanup"]["rules"]
    assert (rule["resources"], rule["verbs"]) == (["daemonsets"], ["get", "delete"])
    assert rule["resourceNames"] == ["sgx-quote-helper", "sgx-device-plugin", "confcom-cleanup"]
    rights = {
        name: {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
        for name, role in objects.items()
        if role["kind"] == "ClusterRole"
    }
    assert rights["ClusterRole/confcom:confcom-cleanup"] <= rights["ClusterRole/confcom:sgx-device-plugin"]
    policy = objects["ValidatingAdmissionPolicy/confcom-cleanup-own-marks.confcom.dev"]["spec"]
    removed = {
        name for one in policy["validations"] for name in (*NODE_RESOURCES, *PLUGIN_MARKS) if name in one["message"]
    }
    assert removed == {*NODE_RESOURCES, *PLUGIN_MARKS}


def test_the_namespace_is_part_of_the_chart_unless_the_release_is_in_it(helm: Helm) -> None:
    assert "Namespace/confcom-system" in by_name(rendered_by(helm, {}))
    assert "Namespace/confcom-system" not in by_name(rendered_by(helm, {}, "--namespace", "confcom-system"))


@pytest.mark.parametrize("values", [{}, with_all_components({"platform": "simulated"})], ids=str)
def test_the_chart_is_clean(helm: Helm, values: dict[str, Any]) -> None:
    done = helm("lint", "--strict", values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout
