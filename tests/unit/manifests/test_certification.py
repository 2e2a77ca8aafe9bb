"""What Intel's quote provider library is told in a cluster, and what the collateral service needs to be asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confcom.errors import ConfigError
from confcom.manifests.addon import remarks, render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import Object
from confcom.services.collateral.collateral_service import CollateralServiceConfig
from confcom.services.runtime import certificates

SERVICE = "https://confcom-collateral.confcom-system.svc:8081"


def rendered(**settings: Any) -> dict[tuple[str, str], Object]:
    objects = render(AddonConfig(quote_helper=True, **settings), version="1")
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def helper(objects: dict[tuple[str, str], Object]) -> tuple[Any, Any, dict[str, str]]:
    """The helper's pod, container and environment."""
    pod = objects["DaemonSet", "sgx-quote-helper"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container, {entry["name"]: entry["value"] for entry in container["env"]}


def configuration(objects: dict[tuple[str, str], Object]) -> Any:
    return json.loads(objects["ConfigMap", "confcom-quote-provider"]["data"]["sgx_default_qcnl.conf"])


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({"collateral": True}, SERVICE),
        ({"collateral": True, "collateral_url": "https://other.example"}, SERVICE),
        ({"collateral_url": "https://pccs.example:8081"}, "https://pccs.example:8081"),
        ({"collateral_url": "https://pccs.example:8081/sgx/certification/v4/"}, "https://pccs.example:8081"),
        ({"collateral_url": "https://proxy.example/pccs/"}, "https://proxy.example/pccs"),
        ({"collateral_url": "http://[fd00::1]:65535/"}, "http://[fd00::1]:65535"),
    ],
)
@pytest.mark.promise("M10")
def test_the_library_is_told_whom_to_ask_in_the_types_that_it_reads(settings: dict[str, Any], base: str) -> None:
    found = configuration(rendered(**settings))
    assert found["pccs_url"] == found["collateral_service"] == f"{base}/sgx/certification/v4/"
    # Of another type, the library passes a value over.
    assert {name: type(value) for name, value in found.items()} == {
        "pccs_url": str,
        "collateral_service": str,
        "use_secure_cert": bool,
        "local_cache_only": bool,
        "retry_times": int,
        "retry_delay": int,
        "pck_cache_expire_hours": int,
        "verify_collateral_cache_expire_hours": int,
    }
    assert found["use_secure_cert"] is True


@pytest.mark.parametrize("settings", [{"collateral": True}, {"collateral_url": "https://pccs.example"}])
def test_the_helper_has_it_where_any_version_of_the_library_looks(settings: dict[str, Any]) -> None:
    pod, container, environment = helper(rendered(**settings))
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert environment["QCNL_CONF_PATH"] == "/etc/confcom/quote-provider/sgx_default_qcnl.conf"
    for path in ("/etc/confcom/quote-provider", "/etc/sgx_default_qcnl.conf"):
        assert volumes[mounts[path]["name"]]["configMap"] == {"name": "confcom-quote-provider"}
        assert mounts[path]["readOnly"] is True
    assert mounts["/etc/sgx_default_qcnl.conf"]["subPath"] == "sgx_default_qcnl.conf"
    assert environment["AZDCAP_CACHE"] in mounts


def test_of_our_own_service_the_helper_trusts_what_the_service_publishes_and_nobody_else() -> None:
    objects = rendered(collateral=True)
    pod, container, environment = helper(objects)
    (name,) = (one["name"] for one in container["volumeMounts"] if one["mountPath"] == "/etc/ssl/certs")
    (volume,) = (one["configMap"] for one in pod["volumes"] if one["name"] == name)
    key = certificates.CA_KEY
    assert volume == {"name": "confcom-collateral-ca", "items": [{"key": key, "path": key}]}
    assert ("ConfigMap", volume["name"]) in objects
    assert environment["CONFCOM_QUOTE_HELPER_COLLATERAL"] == SERVICE
    assert environment["CONFCOM_QUOTE_HELPER_COLLATERAL_CA"] == f"/etc/ssl/certs/{key}"
    assert CollateralServiceConfig().names()[0] in SERVICE
    assert CollateralServiceConfig().tls_config_map == volume["name"]


def test_of_another_service_it_trusts_whom_its_image_does() -> None:
    _, container, environment = helper(rendered(collateral_url="https://pccs.example:9443"))
    assert "/etc/ssl/certs" not in {one["mountPath"] for one in container["volumeMounts"]}
    assert environment["CONFCOM_QUOTE_HELPER_COLLATERAL_CA"] == "/etc/ssl/certs/ca-certificates.crt"
    policy = rendered(collateral_url="https://pccs.example:9443")["NetworkPolicy", "sgx-quote-helper"]
    assert {"port": 9443, "protocol": "TCP"} in policy["spec"]["egress"][0]["ports"]


@pytest.mark.parametrize("settings", [{}, {"platform": "simulated", "collateral": True}])
def test_who_has_no_library_or_no_service_is_told_nothing(settings: dict[str, Any]) -> None:
    objects = rendered(**settings)
    _, container, environment = helper(objects)
    assert ("ConfigMap", "confcom-quote-provider") not in objects
    assert not {"QCNL_CONF_PATH", "CONFCOM_QUOTE_HELPER_COLLATERAL"} & set(environment)
    assert not any(one["mountPath"].startswith("/etc") for one in container["volumeMounts"])


def test_whoever_enables_a_helper_without_a_service_hears_of_it() -> None:
    (remark,) = remarks(AddonConfig(quote_helper=True))
    assert "--enable-collateral" in remark
    for settings in ({}, {"collateral": True}, {"collateral_url": "https://x"}, {"platform": "simulated"}):
        helped = {"quote_helper": bool(settings)}
        assert remarks(AddonConfig(**(helped | settings))) == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "https://",
        'https://x/"',
        "https://x\\y",
        "https://x y",
        "https://x:65536",
        "https://x:a/",
        "https://x@y",
        "x" * 600,
    ],
)
def test_what_would_break_out_of_the_configuration_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="collateral_url"):
        AddonConfig(collateral_url=url).check()


# --- the service ------------------------------------------------------------------------------------------------------


def service(objects: dict[tuple[str, str], Object]) -> tuple[Any, Any, dict[str, str]]:
    spec = objects["Deployment", "confcom-collateral"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    return spec, container, {entry["name"]: entry["value"] for entry in container["env"]}


def test_the_service_may_touch_its_own_two_objects_only() -> None:
    role = rendered(collateral=True)["Role", "confcom-collateral"]
    assert {(rule["resources"][0], *rule["verbs"], *rule["resourceNames"]) for rule in role["rules"]} == {
        ("secrets", "get", "confcom-collateral-tls"),
        ("secrets", "patch", "confcom-collateral-tls"),
        ("configmaps", "get", "patch", "confcom-collateral-ca"),
    }


def test_a_given_certificate_is_read_and_never_written() -> None:
    objects = rendered(collateral=True, collateral_tls_secret="given")
    rules = objects["Role", "confcom-collateral"]["rules"]
    assert [rule["verbs"] for rule in rules if rule["resourceNames"] == ["given"]] == [["get"]]
    _, _, environment = service(objects)
    assert environment["CONFCOM_COLLATERAL_SERVICE_TLS_SECRET"] == "given"
    assert environment["CONFCOM_COLLATERAL_SERVICE_TLS_GIVEN"] == "true"
    assert ("Secret", "given") not in objects


def test_what_the_service_is_to_make_itself_is_left_empty() -> None:
    objects = rendered(collateral=True)
    for ref in (("Secret", "confcom-collateral-tls"), ("ConfigMap", "confcom-collateral-ca")):
        assert not {"data", "stringData"} & set(objects[ref])


def test_probes_and_clients_speak_tls() -> None:
    _, container, environment = service(rendered(collateral=True))
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert "CONFCOM_COLLATERAL_SERVICE_INSECURE_HTTP" not in environment


@pytest.mark.parametrize(
    ("storage", "size", "storage_class"),
    [("1Gi", "1Gi", None), ("standard/512Mi", "512Mi", "standard"), ("a.b-c/1Ti", "1Ti", "a.b-c")],
)
def test_a_store_that_lasts(storage: str, size: str, storage_class: str | None) -> None:
    objects = rendered(collateral=True, collateral_storage=storage)
    claim = objects["PersistentVolumeClaim", "confcom-collateral-store"]["spec"]
    assert claim["resources"]["requests"]["storage"] == size
    assert claim.get("storageClassName") == storage_class
    spec, _, _ = service(objects)
    (volume,) = (one for one in spec["template"]["spec"]["volumes"] if one["name"] == "store")
    assert volume["persistentVolumeClaim"] == {"claimName": "confcom-collateral-store"}
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec["template"]["spec"]["securityContext"]["fsGroup"] == 65532


def test_without_storage_nothing_has_to_be_there() -> None:
    objects = rendered(collateral=True)
    assert not any(kind == "PersistentVolumeClaim" for kind, _ in objects)
    spec, _, _ = service(objects)
    assert {"name": "store", "emptyDir": {"sizeLimit": "1Gi"}} in spec["template"]["spec"]["volumes"]


@pytest.mark.parametrize(
    "settings",
    [{"collateral_storage": "lots"}, {"collateral_storage": "A/1Gi"}, {"collateral_storage": "0Gi"},
     {"collateral_tls_secret": "A b"}, {"collateral_fmspcs": ("12",)}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AddonConfig(**settings).check()


def test_the_helper_joins_the_groups_of_the_devices() -> None:
    pod, container, _ = helper(rendered(quote_helper_groups=(105, 4242)))
    assert pod["securityContext"] == {"supplementalGroups": [105, 4242]}
    assert container["securityContext"]["runAsNonRoot"] is True
    with pytest.raises(ConfigError):
        AddonConfig().changed({"quote_helper_groups": ["-1"]})
