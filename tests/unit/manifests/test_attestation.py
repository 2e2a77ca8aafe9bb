"""The attestation service in a cluster: whose evidence an instance judges, by which collateral, under which name."""

from __future__ import annotations

from typing import Any

import pytest

from confcom.errors import ConfigError
from confcom.manifests import judging
from confcom.manifests.addon import remarks, render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import Object
from confcom.services.attestation.attestation_service import AttestationServiceConfig


def rendered(**settings: Any) -> dict[tuple[str, str], Object]:
    config = AddonConfig(attestation=True, **settings)
    return {(one["kind"], one["metadata"]["name"]): one for one in render(config, version="1")}


def pod_of(objects: dict[tuple[str, str], Object], name: str = "confcom-attestation") -> Any:
    return objects["Deployment", name]["spec"]["template"]["spec"]


def environment(pod: Any) -> dict[str, Any]:
    """Settings without their prefix."""
    (container,) = pod["containers"]
    found = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    return {name.removeprefix("CONFCOM_ATTESTATION_SERVICE_").lower(): value for name, value in found.items()}


def egress(objects: dict[tuple[str, str], Object], name: str = "confcom-attestation") -> set[int]:
    rules = objects["NetworkPolicy", name]["spec"]["egress"]
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_the_issuer_is_the_url_by_which_clients_come_and_the_certificate_is_for_it() -> None:
    own = environment(pod_of(rendered()))
    (port,) = rendered()["Service", "confcom-attestation"]["spec"]["ports"]
    assert (own["url"], port["port"]) == ("https://confcom-attestation.confcom-system.svc", 443)
    config = AttestationServiceConfig(tls_service=own["tls_service"], tls_namespace=own["tls_namespace"])
    assert config.names()[0] in own["url"]
    other = environment(pod_of(rendered(attestation_url="https://attest.example:8443/a")))
    assert (other["url"], other["tls_hosts"]) == ("https://attest.example:8443/a", "attest.example")


def test_a_simulated_instance_has_another_name_volume_and_root() -> None:
    objects = rendered(platform="simulated", collateral=True)
    assert ("Deployment", "confcom-attestation") not in objects
    pod = pod_of(objects, "confcom-attestation-simulated")
    found = environment(pod)
    assert found["url"] == "https://confcom-attestation-simulated.confcom-system.svc"
    (root,) = pod["initContainers"]
    folder = root["args"][-1]
    assert found["trust_roots"] == f"{folder}/root_ca.pem"
    # The world, with which quotes could be forged, is in no reach of the service.
    world = {volume["name"] for volume in pod["volumes"] if "confcom-simulated-world" in str(volume)}
    assert world <= {one["name"] for one in root["volumeMounts"]}
    assert not world & {one["name"] for one in pod["containers"][0]["volumeMounts"]}
    claims = {f"{one.name}{judging.CLAIM_SUFFIX}" for one in (judging.ATTESTATION, judging.ATTESTATION_SIMULATED)}
    assert len(claims) == 2
    assert "trust_roots" not in environment(pod_of(rendered()))


def test_a_simulated_instance_needs_the_collateral_service() -> None:
    with pytest.raises(ConfigError, match="has no collateral") as caught:
        rendered(platform="simulated")
    assert "--enable-collateral" in caught.value.advice()
    with pytest.raises(ConfigError, match="has no collateral"):
        AddonConfig(platform="simulated", attestation=True, collateral=True).changed({"collateral": False})


@pytest.mark.parametrize(
    ("settings", "source", "ports"),
    [
        ({}, "intel", {53, 80, 443, 8081, 6443}),
        (
            {"collateral_url": "https://pccs.example:9443/"},
            "https://pccs.example:9443",
            {53, 80, 443, 8081, 9443, 6443},
        ),
        ({"collateral": True}, "https://confcom-collateral.confcom-system.svc:8081", {53, 8081, 443, 6443}),
    ],
)
def test_it_asks_where_the_cluster_has_its_collateral_from(
    settings: dict[str, Any], source: str, ports: set[int]
) -> None:
    objects = rendered(**settings)
    pod = pod_of(objects)
    found = environment(pod)
    assert found["collateral"] == source
    assert egress(objects) == ports
    volumes = {volume["name"]: volume.get("configMap") for volume in pod["volumes"]}
    if "collateral_ca" in found:
        mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        assert found["collateral_ca"].startswith(mounts["collateral-ca"])
        assert volumes["collateral-ca"]["name"] == "confcom-collateral-ca"
    assert ("collateral_ca" in found) == bool(settings.get("collateral"))


def test_policies_keys_and_audit_are_on_the_volume_if_there_is_one() -> None:
    for storage, size, storage_class in (("1Gi", "1Gi", None), ("fast/2Gi", "2Gi", "fast")):
        objects = rendered(attestation_storage=storage)
        claim = objects["PersistentVolumeClaim", "confcom-attestation-state"]["spec"]
        assert claim["resources"]["requests"]["storage"] == size
        assert claim.get("storageClassName") == storage_class
        assert objects["Deployment", "confcom-attestation"]["spec"]["strategy"] == {"type": "Recreate"}
    pod = pod_of(objects)
    (volume,) = (one for one in pod["volumes"] if "persistentVolumeClaim" in one)
    (folder,) = (one["mountPath"] for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"])
    found = environment(pod)
    assert found["store"].startswith(f"{folder}/")
    assert found["keys"].startswith(f"{folder}/")
    (remark,) = remarks(AddonConfig(attestation=True, attestation_storage=""))
    assert "end with its pod" in remark
    assert ("PersistentVolumeClaim", "confcom-attestation-state") not in rendered(attestation_storage="")
    assert remarks(AddonConfig(attestation=True)) == remarks(AddonConfig()) == []


def test_administrators_are_in_a_secret_of_the_operator_which_need_not_be_there() -> None:
    pod = pod_of(rendered())
    (secret,) = (one for one in pod["volumes"] if "confcom-attestation-admin" in str(one))
    assert secret["secret"]["optional"] is True
    (folder,) = (one["mountPath"] for one in pod["containers"][0]["volumeMounts"] if one["name"] == secret["name"])
    assert environment(pod)["administrators"] == f"{folder}/administrators.toml"
    assert environment(pod)["administrators_optional"] == "true"
