"""What changes, what is pruned, who uses the add-on, and what it leaves on nodes."""

from __future__ import annotations

from typing import Any

import pytest

from confcom.addon.plan import KEPT, STATE_REF, WORLD_REF, change_of, claim_holders, remains, removal_of, to_prune, uses
from confcom.cluster.client import Ref


def config_map(data: dict[str, str], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": "n", **metadata},
        "data": data,
    }


def ref(name: str) -> Ref:
    return Ref("v1", "ConfigMap", "n", name)


def test_what_is_not_wanted_any_more_goes_last_kind_first() -> None:
    present = [ref("a"), ref("b"), ref("c"), WORLD_REF, STATE_REF]
    assert to_prune(present, [ref("b")]) == [ref("c"), ref("a")]


def test_what_cannot_be_made_again_is_kept() -> None:
    assert to_prune(KEPT, ()) == []
    claims = {ref.name for ref in KEPT if ref.kind == "PersistentVolumeClaim"}
    assert claims == {"confcom-attestation-state", "confcom-attestation-simulated-state"}
    assert KEPT.keys() - {WORLD_REF, STATE_REF} == {ref for ref in KEPT if ref.name in claims}


def test_what_the_server_writes_beside_is_no_change() -> None:
    before = config_map(
        {"a": "1"}, uid="x", resourceVersion="5", managedFields=[{}], creationTimestamp="t", generation=1
    )
    after = config_map({"a": "1"}, uid="y", resourceVersion="6", managedFields=[], generation=2)
    assert change_of(before | {"status": {"x": 1}}, after).verb == "unchanged"


def test_a_change_shows_its_lines() -> None:
    change = change_of(config_map({"a": "1", "b": "2"}), config_map({"a": "1", "b": "3"}))
    assert change.verb == "change"
    assert [line for line in change.diff if line[0] in "+-"] == ['-    "b": "2"', '+    "b": "3"']
    assert change_of(None, config_map({})).verb == "create"
    assert removal_of(config_map({})) == ("delete", ref("one"), ())


def test_a_secrets_content_is_never_shown() -> None:
    before, after = ({**config_map({"key": text}), "kind": "Secret"} for text in ("aGlkZGVu", "b3RoZXI="))
    change = change_of(before, after)
    assert not any("aGlkZGVu" in line or "b3RoZXI" in line for line in change.diff)


def pod(
    name: str,
    *,
    namespace: str = "apps",
    node: str = "node-1",
    phase: str = "Running",
    limits: dict[str, str] | None = None,
    path: str = "",
    init: bool = False,
) -> dict[str, Any]:
    containers = [{"name": "main", "resources": {"limits": limits or {}}}]
    spec: dict[str, Any] = {"nodeName": node, "initContainers" if init else "containers": containers}
    if path:
        spec["volumes"] = [{"name": "a", "hostPath": {"path": path}}, {"name": "b", "emptyDir": {}}]
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec, "status": {"phase": phase}}


EPC = {"kubernetes.azure.com/sgx_epc_mem_in_MiB": "10"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod("a", limits=EPC), "apps/a on node-1: kubernetes.azure.com/sgx_epc_mem_in_MiB=10"),
        (pod("a", limits=EPC, init=True), "apps/a on node-1: kubernetes.azure.com/sgx_epc_mem_in_MiB=10"),
        (pod("a", limits=EPC, node=""), "apps/a on no node yet: kubernetes.azure.com/sgx_epc_mem_in_MiB=10"),
        (pod("a", limits={"sgx.intel.com/provision": "1"}), "apps/a on node-1: sgx.intel.com/provision=1"),
        (pod("a", path="/var/run/aesmd"), "apps/a on node-1: the quote helper"),
        (pod("a", path="/run/aesmd/"), "apps/a on node-1: the quote helper"),
        (pod("a", path="/var/run/aesmd2"), None),
        (pod("a", limits={"sgx.confcom.dev/quote-helper": "1"}), "apps/a on node-1: the quote helper"),
        (pod("a", limits={"cpu": "1"}), None),
        (pod("a", limits=EPC, phase="Succeeded"), None),
        (pod("a", limits=EPC, namespace="confcom-system"), None),
    ],
)
def test_who_uses_it_is_named(found: dict[str, Any], said: str | None) -> None:
    assert [str(use) for use in uses([found])] == ([said] if said else [])


def test_holders_of_claims_of_ours_are_known() -> None:
    def claim(driver: str, name: str) -> dict[str, Any]:
        allocation = {"devices": {"results": [{"driver": driver}]}}
        status = {"allocation": allocation, "reservedFor": [{"resource": "pods", "name": name}]}
        return {"metadata": {"name": "c", "namespace": "apps"}, "status": status}

    free = {"metadata": {"name": "c", "namespace": "apps"}}
    holders = claim_holders([claim("sgx.confcom.dev", "a"), claim("gpu.example.com", "b"), free])
    assert holders == {("apps", "a")}
    (use,) = uses([pod("a"), pod("b")], holders)
    assert use.claims
    assert "cannot end" in str(use)


def test_what_is_left_on_nodes_is_found() -> None:
    def node(name: str, capacity: dict[str, str], labels: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": labels}, "status": {"capacity": capacity, "allocatable": capacity}}

    found = remains(
        [
            node("clean", {"cpu": "2"}, {"confcom.dev/sgx": "true"}),
            node("both", {"cpu": "2", "sgx.intel.com/enclave": "0"}, {"confcom.dev/sgx-epc-mib": "5"}),
        ]
    )
    assert found == [("both", ("sgx.intel.com/enclave",), ("confcom.dev/sgx-epc-mib",))]
