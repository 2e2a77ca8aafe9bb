"""What pods, nodes and claims say about EPC."""

from __future__ import annotations

from typing import Any

import pytest

from confcom.errors import FormatError
from confcom.protocols.epc import CANONICAL, EpcContainer, EpcNode, parse_node, parse_pod, requested_epc

MIB = 1 << 20


def container(name: str, mib: int | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": {CANONICAL: str(mib)}} if mib is not None else {}} | more


def pod(*containers: dict[str, Any], init: list[dict[str, Any]] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"nodeName": "n1", "containers": list(containers), "initContainers": init},
        "status": status,
    }


@pytest.mark.parametrize(
    ("amounts", "size"),
    [
        ({}, None),
        ({"cpu": "1"}, None),
        ({CANONICAL: "10"}, 10 * MIB),
        ({CANONICAL: "1k"}, 1000 * MIB),
        ({"sgx.intel.com/epc": "10Mi"}, 10 * MIB),
        ({"sgx.intel.com/sgx_epc_mem_in_MiB": "3"}, 3 * MIB),
        ({"alibabacloud.com/sgx_epc_MiB": "4"}, 4 * MIB),
        ({CANONICAL: "10", "sgx.intel.com/epc": "10Mi"}, 10 * MIB),  # the same EPC under two names
        ({CANONICAL: "much"}, None),
        ({CANONICAL: "-1"}, None),
        ({"sgx.intel.com/epc": "0.5"}, 1),
    ],
)
def test_requests_in_every_dialect(amounts: dict[str, str], size: int | None) -> None:
    assert requested_epc(amounts) == size


def test_containers_with_their_ids() -> None:
    found = parse_pod(
        pod(
            container("app", 10),
            container("other"),
            containerStatuses=[
                {"name": "app", "containerID": "containerd://abc"},
                {"name": "other", "containerID": "cri-o://def"},
            ],
            phase="Running",
        )
    )
    assert found.containers == (EpcContainer("app", "abc", 10 * MIB, (), 10 * MIB), EpcContainer("other", "def"))
    assert (found.node, found.requested, found.finished, str(found)) == ("n1", 10 * MIB, False, "ns/p")


def test_a_pod_that_has_not_started_has_no_ids() -> None:
    found = parse_pod({"metadata": {"name": "p"}, "spec": {"containers": [container("app", 1)]}})
    assert found.containers == (EpcContainer("app", "", MIB, (), MIB),)
    assert found.node == ""


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pods(phase: str) -> None:
    assert parse_pod(pod(container("app", 1), phase=phase)).finished


@pytest.mark.parametrize(
    ("init", "mib", "parts"),
    [
        (None, 30, {}),
        ([container("i", 50)], 50, {"i": 20}),
        ([container("i", 5)], 30, {"i": 0}),
        ([container("i", 40), container("j", 50), container("k", 50)], 50, {"i": 0, "j": 20, "k": 0}),
        ([container("s", 7, restartPolicy="Always"), container("i", 25)], 37, {"s": 7, "i": 0}),
        ([container("s", 7, restartPolicy="Always"), container("i", 31)], 38, {"s": 7, "i": 1}),
        ([container("i", 31), container("s", 7, restartPolicy="Always")], 37, {"i": 0, "s": 7}),
    ],
)
def test_what_the_scheduler_counts(init: list[dict[str, Any]] | None, mib: int, parts: dict[str, int]) -> None:
    document = pod(container("a", 10), container("b", 20), init=init)
    found = parse_pod(document)
    assert found.requested == mib * MIB
    assert {one.name: one.scheduled // MIB for one in found.containers} == {"a": 10, "b": 20, **parts}
    document["spec"]["overhead"] = {CANONICAL: "3", "cpu": "1"}
    document["metadata"]["deletionTimestamp"] = "2026-11-21T09:30:00Z"  # still there, so it still counts
    found = parse_pod(document)
    assert (found.requested, found.overhead, found.finished) == ((mib + 3) * MIB, 3 * MIB, False)


def test_requests_may_stand_alone() -> None:
    one = {"name": "app", "resources": {"requests": {CANONICAL: "2"}, "limits": None}}
    assert parse_pod(pod(one)).containers[0].requested == 2 * MIB


def test_claims_by_name_and_from_templates() -> None:
    document = pod(
        {"name": "app", "resources": {"claims": [{"name": "mine"}, {"name": "made"}, {"name": "unknown"}]}},
        resourceClaimStatuses=[{"name": "made", "resourceClaimName": "p-made-x1"}],
    )
    document["spec"]["resourceClaims"] = [
        {"name": "mine", "resourceClaimName": "my-claim"},
        {"name": "made", "resourceClaimTemplateName": "template"},
    ]
    assert parse_pod(document).containers[0].claims == ("my-claim", "p-made-x1")


def test_the_claim_that_the_scheduler_makes_for_a_resource_of_a_class() -> None:
    name = "deviceclass.resource.kubernetes.io/sgx-epc.confcom.dev"
    mapping = {"containerName": "app", "resourceName": name, "requestName": "container-0-request-0"}
    document = pod(
        {"name": "app", "resources": {"limits": {name: "1"}, "requests": {name: "1"}}},
        {"name": "other"},
        extendedResourceClaimStatus={"requestMappings": [mapping], "resourceClaimName": "p-extended-resources-x1"},
    )
    found = {one.name: one.claims for one in parse_pod(document).containers}
    assert found == {"app": ("p-extended-resources-x1",), "other": ()}


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"metadata": {"name": 7}, "spec": {}}, {"metadata": {"name": "p"}, "spec": {"containers": 1}}],
)
def test_what_is_no_pod(document: Any) -> None:
    with pytest.raises(FormatError):
        parse_pod(document)


def test_nodes() -> None:
    document = {"metadata": {"name": "n1"}, "status": {"allocatable": {CANONICAL: "1k", "sgx.intel.com/epc": "7"}}}
    assert parse_node(document) == EpcNode("n1", 1000 * MIB)
    assert parse_node({"metadata": {"name": "n1"}}) == EpcNode("n1", None)
    own = {"metadata": {"name": "n1"}, "status": {"allocatable": {"example.com/epc": "3"}}}
    assert parse_node(own, "example.com/epc") == EpcNode("n1", 3 * MIB)
