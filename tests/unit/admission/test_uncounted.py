"""SGX where nothing counts it: each place is named, with where the amount belongs; devices by hand are warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from confcom.admission.decision import AdmissionContext, Decision, check_pod, decide_pod, find_pods
from confcom.formats.yaml_text import read_yaml
from sgx_pods import ALIYUN, ENCLAVE, EPC, HYBRID, INTEL, container, pod

HERE = AdmissionContext(namespace="apps")
CASES = Path(__file__).parent / "cases"


def check(text: str) -> Decision:
    (found,) = (found for document in read_yaml(text, source="f") for found in find_pods(document))
    return check_pod(found.pod, HERE, found.around)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("mr139-nested", "name-split", "in spec.containers[0].resources.limits. Write sgx.intel.com/epc: 10Mi there"),
        ("mr182-empty-key", "resource-without-name", "10 stands in its limits under an empty name"),
        ("resource-typo", "epc-misplaced", "in spec.containers[0].resource.limits, where nothing counts it"),
        ("typo-container", "epc-misplaced", "10Mi of sgx.intel.com/epc stands in spec.container[0].resources.limits"),
    ],
)
def test_an_amount_in_the_wrong_place_is_refused_with_that_place(name: str, code: str, said: str) -> None:
    decision = check((CASES / f"{name}.yaml").read_text())
    assert {finding.code for finding in decision.refusals} == {code}
    assert said in decision.refusals[0].sentence


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("overhead", ["epc-uncounted"]),
        ("privdev", ["provision-by-hand", "privileged"]),
        ("noepc-dev", ["provision-by-hand"]),
        ("aksengine", ["provision-by-hand"]),
        ("hostdev", ["device-by-hand", "provision-by-hand"]),
    ],
)
def test_what_kubernetes_allows_is_warned_of(name: str, codes: list[str]) -> None:
    decision = check((CASES / f"{name}.yaml").read_text())
    assert not decision.refusals
    assert [finding.code for finding in decision.warnings] == codes
    assert all(len(finding.sentence) <= 256 for finding in decision.warnings), "the API server cuts them there"


SGX = {EPC: "10"}


@pytest.mark.parametrize("name", [EPC, INTEL, HYBRID, ALIYUN, ENCLAVE])
@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        (lambda limits: pod(resources={"limits": limits}), "spec.resources.limits"),
        (lambda limits: pod() | {"resources": {"limits": limits}}, "resources.limits"),
        (lambda limits: pod(container(resource={"limits": limits})), "spec.containers[0].resource.limits"),
        (lambda limits: pod(container(resources={"limit": limits})), "spec.containers[0].resources.limit"),
        (lambda limits: pod(container(resources=limits)), "spec.containers[0].resources"),
        (lambda limits: pod(container() | limits), "spec.containers[0]"),
        (lambda limits: pod(container(limits=None, limitss=limits)), "spec.containers[0].limitss"),
        (lambda limits: pod(container=[{"resources": {"limits": limits}}]), "spec.container[0].resources.limits"),
        (
            lambda limits: pod(ephemeralContainers=[container("d", limits)]),
            "spec.ephemeralContainers[0].resources.limits",
        ),
        (lambda limits: pod(initContainer=[container("i", limits)]), "spec.initContainer[0].resources.limits"),
        (lambda limits: {"containers": [container("c", limits)]}, "containers[0].resources.limits"),
        (lambda limits: {"spec": {"template": {"spec": {"containers": [container("c", limits)]}}}}, "spec.template."),
    ],
)  # fmt: skip
def test_each_place_that_does_not_count_is_named(wrong: Any, place: str, name: str) -> None:
    decision = decide_pod(wrong({name: "10"}), HERE)
    assert decision.refusals[0].code == "epc-misplaced"
    assert decision.refusals[0].sentence.startswith(f"10 of {name} stands in {place}")


@pytest.mark.parametrize("place", ["annotations", "labels"])
def test_an_amount_among_annotations_or_labels_is_warned_of(place: str) -> None:
    given = pod()
    given["metadata"][place] = {INTEL: "10Mi"}
    (found,) = decide_pod(given, HERE).warnings
    assert found.sentence.startswith(f"10Mi of {INTEL} stands in metadata.{place}, where nothing counts it.")


def test_the_total_that_intels_webhook_writes_is_no_mistake() -> None:
    given = pod(container(limits={INTEL: "10Mi"}), annotations={INTEL: "10Mi"})
    assert not decide_pod(given, HERE).warnings


def test_an_amount_beside_the_template_is_named_by_its_place_in_the_manifest() -> None:
    decision = check(
        "kind: Deployment\nmetadata: {name: d}\nspec:\n  resources: {limits: {sgx.intel.com/epc: 10Mi}}\n"
        "  template: {spec: {containers: [{name: a, image: b}]}}\n"
    )
    assert decision.refusals[0].sentence.startswith("10Mi of sgx.intel.com/epc stands in spec.resources.limits, ")


@pytest.mark.parametrize(
    "split",
    [{"kubernetes": {"azure": {"com/sgx_epc_mem_in_MiB": 7}}}, {"kubernetes.azure": {"com/sgx_epc_mem_in_MiB": 7}}],
)
@pytest.mark.parametrize("kind", ["limits", "requests"])
def test_a_name_split_at_its_dots_is_put_together(split: Any, kind: str) -> None:
    (found,) = decide_pod(pod(container(resources={kind: split})), HERE).refusals
    assert found.code == "name-split"
    assert f"Write {EPC}: 7 there" in found.sentence


@pytest.mark.parametrize(
    "name", ["kubernetes.azure.com/sgx_epc_mem_in_mib", "sgx_epc_mem_in_MiB", "sgx.intel.com/epcs"]
)
def test_a_name_that_no_node_publishes_is_warned_of(name: str) -> None:
    found = decide_pod(pod(container(limits={name: "10"})), HERE).warnings
    assert [one.code for one in found] == ["unknown-resource"]
    assert name in found[0].sentence


@pytest.mark.parametrize(
    ("path", "codes"),
    [
        ("/dev/sgx_enclave", ["device-by-hand"]),
        ("/dev/isgx", ["device-by-hand"]),
        ("/dev/sgx/enclave", ["device-by-hand"]),
        ("/dev/sgx/provision", ["provision-by-hand"]),
        ("/dev/sgx_provision", ["provision-by-hand"]),
        ("/dev/sgx/", ["provision-by-hand"]),
        ("/dev/../dev/./sgx_enclave", ["device-by-hand"]),
        ("/dev", ["provision-by-hand"]),
        ("/", ["provision-by-hand"]),
        ("/dev/shm", []),
        ("/var/run/aesmd", []),
        ("relative", []),
    ],
)
def test_devices_of_the_host_are_warned_of(path: str, codes: list[str]) -> None:
    mounts = [{"name": "v", "mountPath": "/host"}]
    volumes = [{"name": "v", "hostPath": {"path": path}}]
    sgx = pod(container(limits=SGX, volumeMounts=mounts), volumes=volumes)
    assert [finding.code for finding in decide_pod(sgx, HERE).warnings] == codes
    # Nobody warns of what an ordinary pod does with /dev as a whole.
    plain = pod(container(volumeMounts=mounts, securityContext={"privileged": True}), volumes=volumes)
    assert [finding.code for finding in decide_pod(plain, HERE).warnings] == (
        codes if path not in ("/", "/dev") else []
    )
    unused = pod(container(limits=SGX), volumes=volumes)
    assert not decide_pod(unused, HERE).warnings


def test_ordinary_pods_hear_nothing() -> None:
    given = pod(
        container(limits={"cpu": "1"}, env=[{"name": "sgx.intel.com/epc", "value": "1"}]),
        tolerations=[{"key": EPC, "operator": "Exists"}],
        nodeSelector={"confcom.dev/sgx": "true"},
    )
    decision = decide_pod(given, HERE)
    assert (decision.refusals, decision.warnings) == ((), ())
    assert decision.pod is given
