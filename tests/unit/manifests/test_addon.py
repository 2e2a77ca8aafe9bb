"""What every object of the add-on must be, whatever the settings."""

from __future__ import annotations

import itertools
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from confcom.cluster.client import ADDON_KINDS, NAMESPACE_KIND
from confcom.errors import ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.metrics import CA_SECRET as API_CA
from confcom.manifests.metrics import EXPORTERS_CA_SECRET as EXPORTERS_CA
from confcom.manifests.objects import (
    COMPONENT,
    MANAGED_BY,
    NAMESPACE,
    OURS,
    PART_OF,
    SGX_NODE_LABELS,
    IssuingCa,
    Object,
)
from confcom.manifests.simulated import cleanup

EVERYTHING = AddonConfig(
    quote_helper=True,
    collateral=True,
    attestation=True,
    attested_certificates=True,
    metrics=True,
    autoscaling=True,
    provision_grants=("apps/default",),
)
CLUSTER_WIDE = {
    "sgx-webhook", "confcom-collateral", "confcom-attestation", "confcom-certificate-signer", "confcom-metrics-api",
}  # fmt: skip
SIGNER, CERTIFICATES = "confcom:confcom-certificate-signer", "certificates.k8s.io"
VARIANTS = [
    AddonConfig(
        platform=platform,
        publisher=publisher,
        quote_helper=everything,
        collateral=everything,
        attestation=everything,
        attested_certificates=everything,
        metrics=everything,
        autoscaling=everything,
        webhook=everything,
        provision_grants=() if not everything else ("more/*",) if publisher == "dra" else ("apps/default", "more/*"),
    )
    for platform, publisher, everything in itertools.product(
        ("intel", "simulated"), ("auto", "devices", "node-status", "dra"), (True, False)
    )
]
VARIANTS.append(AddonConfig(collateral=True, attestation=True, collateral_database="db", attestation_database="db"))


def rendered(config: AddonConfig) -> list[Object]:
    return render(config, version="1.2.3")


def find(objects: list[Object], kind: str, name: str) -> Any:
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Any]]:
    for one in objects:
        if one["kind"] in ("DaemonSet", "Deployment", "Job"):
            pod = one["spec"]["template"]["spec"]
            yield pod["serviceAccountName"], pod  # the component's name; a Job has a longer one


def containers(pod: Any) -> list[Any]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_every_object_is_ours_known_and_there_once(config: AddonConfig) -> None:
    objects = rendered(config)
    kinds = {(kind.api_version, kind.name): kind.namespaced for kind in (*ADDON_KINDS, NAMESPACE_KIND)}
    places = set()
    for one in objects:
        metadata = one["metadata"]
        namespaced = kinds[one["apiVersion"], one["kind"]]
        assert metadata.get("namespace") == (NAMESPACE if namespaced else None)
        assert metadata["labels"][PART_OF] == OURS[PART_OF]
        assert metadata["labels"][MANAGED_BY] in OURS[MANAGED_BY]
        assert metadata["labels"][COMPONENT]
        places.add((one["kind"], metadata["name"]))
    assert len(places) == len(objects)
    assert [one["kind"] for one in objects[:2]] == ["Namespace", "ConfigMap"]
    assert objects == rendered(config)


@pytest.mark.parametrize("config", [*VARIANTS], ids=str)
@pytest.mark.complaint("linux-sgx #583", "linux-sgx #725")
def test_no_container_has_more_than_it_needs(config: AddonConfig) -> None:
    extra = {"socket-folder": ["CHOWN"], "metrics": ["SYS_PTRACE"]}
    as_root = {"device-plugin", "machine", "socket-folder", "metrics", "remove"}
    for _, pod in pods([*rendered(config), *cleanup(config, version="1.2.3")]):
        assert not pod.get("hostNetwork")
        assert not pod.get("hostIPC")
        for one in containers(pod):
            context = one["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["privileged"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["capabilities"].get("add", []) == extra.get(one["name"], [])
            assert (context["runAsUser"] == 0) == (one["name"] in as_root)
            assert context["runAsNonRoot"] == (one["name"] not in as_root)


def test_a_profile_of_the_nodes_is_for_the_quote_helper_alone() -> None:
    config = AddonConfig(quote_helper=True, metrics=True, quote_helper_seccomp="localhost/confcom/quote-helper.json")
    found = {one["name"]: one["securityContext"] for _, pod in pods(rendered(config)) for one in containers(pod)}
    wanted = {"type": "Localhost", "localhostProfile": "confcom/quote-helper.json"}
    assert found.pop("quote-helper")["seccompProfile"] == wanted
    assert {context["seccompProfile"]["type"] for context in found.values()} == {"RuntimeDefault"}


def test_images_are_chosen_once_for_all() -> None:
    for config, image in (
        (EVERYTHING, "confcom/confcom:1.2.3"),
        (AddonConfig(image="reg:5000/a@sha256:0"), "reg:5000/a@sha256:0"),
    ):
        images = {one["image"] for _, pod in pods(rendered(config)) for one in containers(pod)}
        assert images == {image}


def test_an_image_behind_a_password_is_pulled_with_the_operators_secrets() -> None:
    config = msgspec.structs.replace(EVERYTHING, platform="simulated", image_pull_secrets=("one", "two"))
    for _, pod in pods([*rendered(config), *cleanup(config, version="1.2.3")]):
        assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert not [pod for _, pod in pods(rendered(EVERYTHING)) if "imagePullSecrets" in pod]


def test_every_object_says_which_version_it_is_of_and_no_pod_does() -> None:
    """A pod's template that changed with the version alone would restart what runs on with an image of its own."""
    for one in rendered(EVERYTHING):
        assert one["metadata"]["labels"]["app.kubernetes.io/version"] == "1.2.3"
        if "template" in one.get("spec", {}):
            assert "app.kubernetes.io/version" not in one["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("platform", ["intel", "simulated"])
def test_containers_say_what_they_use_and_how_they_are(platform: Any) -> None:
    config = msgspec.structs.replace(EVERYTHING, platform=platform)
    objects = rendered(config)
    for _, pod in pods([*objects, *cleanup(config, version="1.2.3")]):
        for one in containers(pod):
            assert set(one["resources"]["requests"]) >= {"cpu", "memory"}
            assert "memory" in one["resources"]["limits"]
    for _, pod in pods(objects):
        (one,) = pod["containers"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(one)
        assert one["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_what_serves_the_cluster_would_run_in_a_restricted_namespace() -> None:
    allowed = {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
    for name, pod in pods(rendered(EVERYTHING)):
        if name not in CLUSTER_WIDE:
            continue
        assert not pod.get("hostPID")
        assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= allowed
        assert all(one["securityContext"]["runAsNonRoot"] for one in containers(pod))
        assert not any("hostPort" in port for one in containers(pod) for port in one["ports"])


@pytest.mark.parametrize(
    ("publisher", "with_token"),
    [
        ("devices", {"sgx-metrics"}),
        ("auto", {"sgx-metrics", "sgx-device-plugin"}),
        ("dra", {"sgx-metrics", "sgx-device-plugin"}),
    ],
)
def test_only_who_asks_the_api_has_a_token(publisher: Any, with_token: set[str]) -> None:
    config = msgspec.structs.replace(EVERYTHING, provision_grants=(), publisher=publisher)
    objects = rendered(config)
    with_token = with_token | CLUSTER_WIDE
    assert {name for name, pod in pods(objects) if pod["automountServiceAccountToken"]} == with_token
    accounts = [one for one in objects if one["kind"] == "ServiceAccount"]
    assert {one["metadata"]["name"] for one in accounts if one["automountServiceAccountToken"]} == with_token
    bound = {one["subjects"][0]["name"] for one in objects if one["kind"].endswith("RoleBinding")}
    assert bound == with_token


def _named(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def test_rights_are_these_and_no_others() -> None:
    found = {
        (*_named(one), *rule["apiGroups"], resource, *rule.get("resourceNames", ()), tuple(rule["verbs"]))
        for one in rendered(EVERYTHING)
        if one["kind"] in ("Role", "ClusterRole")
        for rule in one["rules"]
        for resource in rule["resources"]
    }
    assert found == {
        ("ClusterRole", "confcom:sgx-device-plugin", "", "nodes", ("get", "list", "watch")),
        ("ClusterRole", "confcom:sgx-device-plugin", "", "nodes/status", ("patch",)),
        ("ClusterRole", "confcom:sgx-metrics", "", "nodes", ("get",)),
        ("ClusterRole", "confcom:sgx-metrics", "", "pods", ("list", "watch")),
        ("ClusterRole", "confcom:sgx-metrics", "events.k8s.io", "events", ("create", "get", "patch")),
        ("ClusterRole", "confcom:sgx-metrics", "resource.k8s.io", "resourceclaims", ("get",)),
        ("ClusterRole", "confcom:confcom-metrics-api", "", "pods", ("list", "watch")),
        (
            "ClusterRole",
            "confcom:confcom-metrics-api",
            "",
            "configmaps",
            "extension-apiserver-authentication",
            ("get",),
        ),
        ("ClusterRole", "confcom:sgx-webhook", "", "nodes", ("get", "list", "watch")),
        ("Role", "confcom-collateral", "", "secrets", "confcom-collateral-tls", ("get",)),
        ("Role", "confcom-collateral", "", "secrets", "confcom-collateral-tls", ("patch",)),
        ("Role", "confcom-collateral", "", "configmaps", "confcom-collateral-ca", ("get", "patch")),
        ("Role", "confcom-attestation", "", "secrets", "confcom-attestation-tls", ("get",)),
        ("Role", "confcom-attestation", "", "secrets", "confcom-attestation-tls", ("patch",)),
        ("Role", "confcom-attestation", "", "configmaps", "confcom-attestation-ca", ("get", "patch")),
        ("ClusterRole", SIGNER, CERTIFICATES, "certificatesigningrequests", ("get", "list", "watch")),
        ("ClusterRole", SIGNER, CERTIFICATES, "certificatesigningrequests/approval", ("update",)),
        ("ClusterRole", SIGNER, CERTIFICATES, "certificatesigningrequests/status", ("update",)),
        ("ClusterRole", SIGNER, CERTIFICATES, "signers", "confcom.dev/attested", ("approve", "sign")),
        ("ClusterRole", SIGNER, "events.k8s.io", "events", ("create", "get", "patch")),
        ("Role", "confcom-certificate-signer", "", "secrets", "confcom-certificate-signer-ca", ("get",)),
        ("Role", "confcom-certificate-signer", "", "secrets", "confcom-certificate-signer-ca", ("patch",)),
        ("Role", "confcom-certificate-signer", "", "configmaps", "confcom-attested-pods-ca", ("get", "patch")),
        # Of the pods to whose accounts people bind it.
        (
            "ClusterRole",
            "confcom-certificate-requester",
            CERTIFICATES,
            "certificatesigningrequests",
            ("create", "get"),
        ),
    }


@pytest.mark.promise("M1")
@pytest.mark.promise("M4")
def test_node_components_run_on_sgx_nodes_only_whoever_labelled_them() -> None:
    config = AddonConfig(
        quote_helper=True, metrics=True, node_selector=("pool=acc",), tolerations=("dedicated=sgx:NoSchedule",)
    )
    for name, pod in pods(rendered(config)):
        if name == "sgx-webhook":
            assert "affinity" not in pod
            continue
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        wanted = [{one["key"]: one["values"] for one in term["matchExpressions"]} for term in terms]
        common = {"kubernetes.io/os": ["linux"], "kubernetes.io/arch": ["amd64"], "pool": ["acc"]}
        assert wanted == [{label: ["true"], **common} for label in SGX_NODE_LABELS]
        assert {"key": "dedicated", "value": "sgx", "effect": "NoSchedule"} in pod["tolerations"]
        assert {"key": "kubernetes.azure.com/sgx_epc_mem_in_MiB", "operator": "Exists"} in pod["tolerations"]


@pytest.mark.promise("M6")
@pytest.mark.promise("M7")
def test_the_quote_helper_is_off_at_first_and_lives_on_the_device_plugins_epc() -> None:
    assert "sgx-quote-helper" not in dict(pods(rendered(AddonConfig())))
    objects = rendered(AddonConfig(quote_helper=True))
    helper = find(objects, "DaemonSet", "sgx-quote-helper")
    assert helper["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = helper["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits.items() >= {"sgx.confcom.dev/quote-helper-epc": "4"}.items()
    (folder,) = (one["hostPath"] for one in pod["volumes"] if one["name"] == "aesmd-socket")
    assert folder == {"path": "/var/run/aesmd", "type": "DirectoryOrCreate"}
    (plugin,) = dict(pods(objects))["sgx-device-plugin"]["containers"]
    assert {"name": "CONFCOM_DEVICE_PLUGIN_HELPER_EPC_MIB", "value": "4"} in plugin["env"]


@pytest.mark.parametrize("publisher", ["auto", "devices", "node-status", "dra"])
def test_the_quote_helpers_epc_is_its_own_however_epc_is_published(publisher: Any) -> None:
    objects = rendered(AddonConfig(quote_helper=True, publisher=publisher, quote_helper_epc_mib=8))
    pod = dict(pods(objects))["sgx-quote-helper"]
    resources = pod["containers"][0]["resources"]
    assert set(resources["limits"]) == {"memory", "sgx.confcom.dev/quote-helper-epc"}
    assert resources["requests"]["sgx.confcom.dev/quote-helper-epc"] == "8"
    assert "resourceClaims" not in pod
    find(objects, "ValidatingAdmissionPolicyBinding", "sgx-reserved.confcom.dev")


def test_no_priority_of_a_tenant_is_above_a_components() -> None:
    objects = [*rendered(EVERYTHING), *cleanup(msgspec.structs.replace(EVERYTHING, platform="simulated"), version="1")]
    found = {name: pod["priorityClassName"] for name, pod in pods(objects)}
    assert found == {name: f"system-{'cluster' if name in CLUSTER_WIDE else 'node'}-critical" for name in found}
    quota = find(objects, "ResourceQuota", "confcom-critical-pods")["spec"]["scopeSelector"]["matchExpressions"]
    assert [set(one["values"]) for one in quota] == [set(found.values())]


def test_a_grant_for_one_account_is_refused_where_claims_tell_none_apart() -> None:
    for take in (rendered, lambda config: config.changed({})):
        with pytest.raises(ConfigError, match="every pod of the namespace would have the provisioning device"):
            take(AddonConfig(publisher="dra", provision_grants=("apps/*", "apps/one")))
    rendered(AddonConfig(publisher="dra", provision_grants=("apps/*",)))


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_everything_that_is_not_opened_is_closed(config: AddonConfig) -> None:
    objects = rendered(config)
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    assert find(objects, "NetworkPolicy", "confcom-nothing-else")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    opened = {one["metadata"]["name"]: one["spec"] for one in policies}
    for name, pod in pods(objects):
        ports = {port["containerPort"] for one in pod["containers"] for port in one.get("ports", ())}
        assert {port["port"] for rule in opened[name]["ingress"] for port in rule["ports"]} == ports
        assert bool(opened[name]["egress"]) == (
            pod["automountServiceAccountToken"] or pod["dnsPolicy"] == "ClusterFirst"
        )


def test_the_ports_of_the_api_server_are_a_setting_and_what_was_found() -> None:
    config = AddonConfig(metrics=True, api_ports=(443, 8443))
    for found, ports in (((), [443, 8443]), ((443, 6481), [443, 8443, 6481])):
        objects = render(config, version="1.2.3", api_ports=found)
        for name in ("sgx-device-plugin", "sgx-webhook", "sgx-metrics"):
            (rule,) = find(objects, "NetworkPolicy", name)["spec"]["egress"]
            assert [port["port"] for port in rule["ports"]] == ports
        # What was found is no decision of the operator, so it is not remembered as one.
        assert find(objects, "ConfigMap", "confcom-addon")["data"]["apiPorts"] == "443,8443"


def test_the_webhooks_port_is_open_to_the_api_server_alone_where_its_addresses_are_named() -> None:
    def rules(**settings: Any) -> list[Any]:
        objects = rendered(AddonConfig(**settings))
        found: list[Any] = find(objects, "NetworkPolicy", "sgx-webhook")["spec"]["ingress"]
        return found

    # The kubelet's probes and whoever reads metrics come from elsewhere.
    page = {"ports": [{"port": 9464, "protocol": "TCP"}]}
    reviews = {"ports": [{"port": 8443, "protocol": "TCP"}]}
    assert rules() == [page, reviews]
    sources = [{"ipBlock": {"cidr": "10.240.0.1/32"}}, {"ipBlock": {"cidr": "fd00::/64"}}]
    assert rules(api_addresses=("10.240.0.1/32", "fd00::/64")) == [page, reviews | {"from": sources}]


def test_the_webhook_mounts_the_authority_of_clients_where_it_is_named() -> None:
    def webhook_pod(**settings: Any) -> Any:
        return dict(pods(rendered(AddonConfig(**settings))))["sgx-webhook"]

    (volume,) = [one for one in webhook_pod(webhook_client_ca="api-client-ca")["volumes"] if "configMap" in one]
    assert volume == {"name": "client-ca", "configMap": {"name": "api-client-ca"}}
    assert "client-ca" not in str(webhook_pod())


def test_a_disruption_leaves_a_webhook() -> None:
    objects = rendered(AddonConfig())
    assert find(objects, "PodDisruptionBudget", "sgx-webhook")["spec"]["maxUnavailable"] == 1
    spec = find(objects, "Deployment", "sgx-webhook")["spec"]
    assert spec["replicas"] == 2
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"  # a cluster of one node has both there


def test_the_api_server_trusts_the_ca_that_the_webhook_holds() -> None:
    ca = IssuingCa(b"certificate", b"key", b"bundle")
    objects = render(AddonConfig(), version="1.2.3", cas={"sgx-webhook-ca": ca})
    data = find(objects, "Secret", "sgx-webhook-ca")["data"]
    assert {name: b64decode(text) for name, text in data.items()} == {
        "tls.crt": b"certificate", "tls.key": b"key", "ca.crt": b"bundle"
    }  # fmt: skip
    assert [name for name, pod in pods(objects) if "sgx-webhook-ca" in str(pod["volumes"])] == ["sgx-webhook"]
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        for entry in find(objects, kind, "sgx-webhook.confcom.dev")["webhooks"]:
            assert b64decode(entry["clientConfig"]["caBundle"]) == b"bundle"
            service = entry["clientConfig"]["service"]
            (port,) = find(objects, "Service", service["name"])["spec"]["ports"]
            assert (service["namespace"], service["port"]) == (NAMESPACE, port["port"])


def test_the_keys_of_the_metrics_api_and_of_exporters_are_apart() -> None:
    """A node's exporter can issue exporters' certificates, and none that the API server takes for the metrics API."""
    cas = {name: IssuingCa(name.encode(), b"key", name.encode() + b"s") for name in (API_CA, EXPORTERS_CA)}
    objects = render(EVERYTHING, version="1.2.3", cas=cas)
    holders = {
        name: {
            volume["secret"]["secretName"]
            for volume in pod["volumes"]
            if "secret" in volume and "items" not in volume["secret"]
        }
        & set(cas)
        for name, pod in pods(objects)
    }
    assert {name: held for name, held in holders.items() if held} == {
        "confcom-metrics-api": {API_CA}, "sgx-metrics": {EXPORTERS_CA}, "sgx-quote-helper": {EXPORTERS_CA}
    }  # fmt: skip
    spec = find(objects, "APIService", "v1beta2.custom.metrics.k8s.io")["spec"]
    assert b64decode(spec["caBundle"]) == API_CA.encode() + b"s"
    assert objects[-1]["kind"] == "APIService"
    (port,) = find(objects, "Service", spec["service"]["name"])["spec"]["ports"]
    assert spec["service"] == {"namespace": NAMESPACE, "name": "confcom-metrics-api", "port": port["port"]}
    assert find(objects, "Deployment", "confcom-metrics-api")["spec"]["replicas"] == 2
    assert find(objects, "PodDisruptionBudget", "confcom-metrics-api")["spec"]["maxUnavailable"] == 1


def test_exporters_have_no_further_port_without_the_metrics_api() -> None:
    objects = rendered(msgspec.structs.replace(EVERYTHING, autoscaling=False))
    assert "9467" not in json.dumps(objects)
    assert "9467" in json.dumps(rendered(EVERYTHING))


def test_the_metrics_api_needs_the_exporter() -> None:
    with pytest.raises(ConfigError, match="nothing to scale on"):
        AddonConfig().changed({"autoscaling": True})


def test_without_a_ca_no_key_is_made_up() -> None:
    assert not [one for one in rendered(EVERYTHING) if one["kind"] == "Secret" and "data" in one]
    assert "caBundle" not in json.dumps(rendered(EVERYTHING))


def test_an_operator_may_name_the_namespaces_that_the_webhook_is_for() -> None:
    never = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}
    named = {"key": "confcom.dev/sgx", "operator": "In", "values": ["true"]}
    for config, wanted in (
        (AddonConfig(), [never]),
        (AddonConfig(webhook_namespaces="labelled"), [never, named]),
    ):
        for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
            entries = find(rendered(config), kind, "sgx-webhook.confcom.dev")["webhooks"]
            assert [entry["namespaceSelector"] for entry in entries] == [{"matchExpressions": wanted}] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"image": "oeciteam/sgx-test: 1.0"},
        {"image_pull_secrets": ("A_B",)},
        {"simulated_epc": "lots"},
        {"simulated_epc": "1Mi" * 200},
        {"provision_grants": ("apps",)},
        {"provision_grants": ("apps/Default",)},
        {"provision_grants": ("*/default",)},
        {"node_selector": ("pool",)},
        {"tolerations": ("a=b:Never",)},
        {"collateral_upstream": "ftp://x"},
        {"quote_helper_seccomp": "Unconfined"},
        {"quote_helper_seccomp": "localhost/../x"},
        {"quote_helper_seccomp": "localhost//etc/x"},
        {"collateral_url": "ftp://x"},
        {"collateral_storage": "big"},
        {"collateral_tls_secret": "A_B"},
        {"collateral_database": "A_B"},
        {"attestation_url": "http://attest.example"},
        {"attestation_url": "https://attest.example/?x"},
        {"attestation_storage": "1"},
        {"attestation_tls_secret": "A_B"},
        {"attestation_administrators": "A_B"},
        {"attestation_pin_secret": "a/b"},
        {"attestation_keys": "pkcs11:token=a?module-path=/x.so&pin-value=1234"},
        {"attestation_keys": "pkcs11:token=a?module-path=x.so"},
        {"attestation_keys": "pkcs11:token=a b?module-path=/x.so"},
        {"attestation_database": "A_B"},
        {"webhook_client_ca": "A_B"},
        {"api_addresses": ("10.240.0.1",)},
        {"api_addresses": ("10.240.0.1/24",)},
        {"api_addresses": ("10.240.0.0/255.255.255.0",)},
        {"api_addresses": ("fe80::1%eth0/128",)},
        {"api_addresses": ("10.0.0.0/33",)},
        {"collateral_fmspcs": ("00",)},
        {"collateral_tcb_sets": ("0",)},
        {"collateral_tcb_sets": ("Canary=early",)},
        {"collateral_tcb_sets": ("late",)},
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    (value,) = settings.values()
    # Second, as the command line does it.
    for take in (lambda: rendered(AddonConfig(**settings)), lambda: AddonConfig().changed(settings)):
        with pytest.raises(ConfigError) as caught:
            take()
        assert repr(value if isinstance(value, str) else value[0]) in str(caught.value)
        assert caught.value.advice().startswith("Write ")


@pytest.mark.parametrize("sets", [("early", "17"), ("17", "17"), ("a=early", "19", "a=18")])
def test_clients_get_one_set(sets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="the same clients two sets"):
        AddonConfig().changed({"collateral_tcb_sets": sets})
    assert AddonConfig().changed({"collateral_tcb_sets": ("17", "a=early", "b=early")})


def test_labels_say_whose_everything_is() -> None:
    assert OURS == {PART_OF: "confcom", MANAGED_BY: ("confcom-addon", "Helm")}


@pytest.mark.parametrize("platform", ["intel", "simulated"])
@pytest.mark.complaint("Azure/AKS #3815", "Azure/AKS #2883")
def test_of_the_host_only_sockets_and_the_simulated_node_are_written(platform: Any) -> None:
    writable = {
        "device-plugin": {"/var/lib/kubelet/device-plugins"},
        "quote-helper": {"/var/run/aesmd"},
        "metrics": set(),
    }
    if platform == "simulated":
        writable["device-plugin"] |= {"/var/lib/confcom/simulated-node"}
    config = AddonConfig(platform=platform, quote_helper=True, metrics=True, webhook=False)
    for _, pod in pods(rendered(config)):
        paths = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
        (one,) = pod["containers"]
        mounts = [entry for entry in one["volumeMounts"] if entry["name"] in paths]
        assert {paths[entry["name"]] for entry in mounts if not entry.get("readOnly")} == writable[one["name"]]
        assert all(entry.get("recursiveReadOnly") for entry in mounts if entry.get("readOnly"))


@pytest.mark.complaint("Azure/AKS #2350")
def test_nothing_belongs_to_one_cloud_or_region() -> None:
    """Where images and collateral come from can be said; beyond these no object names a host outside the cluster."""
    config = msgspec.structs.replace(
        EVERYTHING, image="registry.internal:5000/confcom@sha256:00", collateral_upstream="https://pccs.internal:8081/"
    )
    text = json.dumps([one for one in rendered(config) if one["kind"] != "ConfigMap"])
    hosts = set(re.findall(r"https?://([^/\"\\:]+)", text))
    assert {host for host in hosts if not host.endswith(".svc")} <= {"pccs.internal"}
    assert set(re.findall(r'"image": "([^"]+)"', text)) == {config.image}
    for word in ("azurecr", "mcr.microsoft", "docker.io", "trustedservices", "169.254.169.254"):
        assert word not in text


@pytest.mark.parametrize(
    "alone", [{"attestation_keys": "pkcs11:token=a?module-path=/x.so"}, {"attestation_pin_secret": "p"}]
)
def test_keys_in_a_token_come_with_the_secret_of_their_pin(alone: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        AddonConfig().changed(alone)


def test_keys_in_a_token_are_named_with_the_file_of_their_pin() -> None:
    keys = {"attestation_keys": "pkcs11:token=a?module-path=/x.so", "attestation_pin_secret": "hsm"}
    found = render(AddonConfig().changed({"attestation": True, **keys}), version="1")
    pod = next(each for each in found if each["kind"] == "Deployment" and "attestation" in each["metadata"]["name"])
    spec = pod["spec"]["template"]["spec"]
    container = spec["containers"][0]
    settings = {each["name"]: each.get("value") for each in container["env"]}
    uri = settings["CONFCOM_ATTESTATION_SERVICE_KEYS"]
    assert uri == "pkcs11:token=a?module-path=/x.so&pin-source=/etc/confcom/pin/pin"
    assert {"name": "pin", "mountPath": "/etc/confcom/pin", "readOnly": True}.items() <= next(
        each for each in container["volumeMounts"] if each["name"] == "pin"
    ).items()
    assert next(each["secret"] for each in spec["volumes"] if each["name"] == "pin") == {
        "secretName": "hsm",
        "defaultMode": 0o440,
    }
