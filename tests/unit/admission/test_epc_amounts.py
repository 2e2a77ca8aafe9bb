"""Every dialect of EPC becomes the canonical form; what cannot be meant is refused with what to write."""

from __future__ import annotations

import pytest

from confcom.admission.decision import AdmissionContext, check_pod, decide_pod
from sgx_pods import ALIYUN, ENCLAVE, EPC, HYBRID, INTEL, PROVISION, canonical, container, labelled, pod

HERE = AdmissionContext(namespace="apps")


def resources_of(found: dict, kind: str = "containers", index: int = 0) -> dict:
    return found["spec"][kind][index]["resources"]


def codes(decision) -> list[str]:
    return [finding.code for finding in decision.refusals]


@pytest.mark.promise("M2")
@pytest.mark.parametrize(
    ("limits", "mib"),
    [
        ({EPC: "10"}, 10),
        ({HYBRID: "10"}, 10),
        ({ALIYUN: "93"}, 93),
        ({INTEL: "10Mi"}, 10),
        ({INTEL: "10485760"}, 10),
        ({INTEL: "512Ki"}, 1),
        ({INTEL: "1M"}, 1),
        ({INTEL: "10Mi", EPC: "10"}, 10),
        ({INTEL: "10Mi", EPC: "10", ALIYUN: "10", HYBRID: "10", ENCLAVE: "1"}, 10),
        ({INTEL: "256Gi"}, 262144),
    ],
)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.complaint("marblerun #575")
def test_every_dialect_becomes_the_canonical_form(limits: dict, mib: int, kind: str) -> None:
    sgx, plain = container("enclave", limits), container("plain", {"cpu": "1"})
    given = pod(sgx, plain) if kind == "containers" else pod(plain, initContainers=[sgx])

    decision = decide_pod(given, HERE)

    assert not decision.refusals
    assert resources_of(decision.pod, kind) == canonical(mib)
    assert decision.epc == mib


def test_other_resources_stay() -> None:
    given = pod(container(limits={"cpu": "1", "example.com/gpu": "2", INTEL: "5Mi"}))
    found = resources_of(decide_pod(given, HERE).pod)
    assert found["limits"] == {"cpu": "1", "example.com/gpu": "2", **canonical(5)["limits"]}


@pytest.mark.parametrize("written", ["10", "1k", "10.0"])
def test_an_amount_that_is_right_is_not_rewritten(written: str) -> None:
    """The API server writes 1000 as 1k."""
    given = labelled(pod(container(limits={EPC: written, ENCLAVE: "1"})))
    decision = decide_pod(given, HERE)
    assert decision.pod is given
    assert not decision.refusals


@pytest.mark.parametrize("name", [EPC, HYBRID, ALIYUN])
@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("10240Ki", "10"), ("10Mi", "10"), ("1Gi", "1024"), ("1.5Gi", "1536"), ("1Ti", "1048576"),
        ("10M", "10"), ("10G", "10240"), ("1T", "1048576"), ("1P", "the MiB that the container needs, such as 10"),
        ("10m", "10"), ("1500m", "2"), ("10e3", "10000"), ("10E3", "10000"), ("1e1", "10"), ("1k", "1000"),
    ],
)  # fmt: skip
def test_a_unit_beside_the_one_in_the_name_is_refused_whatever_it_is(name: str, written: str, advice: str) -> None:
    found = check_pod(pod(container(resources={"limits": {name: written}})), HERE).refusals
    assert [finding.code for finding in found] == ["unit-twice"]
    assert found[0].sentence.endswith(f"because this resource counts MiB already. Write {advice}.")


@pytest.mark.parametrize(
    ("name", "written", "advice"),
    [
        (EPC, "64 MB", "64"), (EPC, "64MiB", "64"), (EPC, "2gb", "2048"), (EPC, "1,5Gi", "1536"), (EPC, "-5", "5"),
        (EPC, " 7 ", "7"), (EPC, "107374182400", "102400"), (EPC, "2.5", "3"), (EPC, "ten", "10"),
        (INTEL, "64", "64Mi"), (INTEL, "64 MB", "64Mi"), (INTEL, "2gb", "2Gi"), (INTEL, "10m", "10Mi"),
        (INTEL, "1k", "1000Mi"), (INTEL, "-5", "5Mi"), (INTEL, "1,5Gi", "1.5Gi"), (INTEL, "ten", "10Mi"),
        (INTEL, "90000Gi", "what it needs, such as 10Mi"),
    ],
)  # fmt: skip
def test_advice_keeps_the_amount_in_the_unit_of_the_resource(name: str, written: str, advice: str) -> None:
    (found,) = decide_pod(pod(container(limits={name: written})), HERE).refusals
    assert found.sentence.endswith(f" Write {advice}.")


def test_limits_alone_get_their_requests() -> None:
    given = pod(container(resources={"limits": {EPC: "10"}}))
    assert resources_of(decide_pod(given, HERE).pod) == canonical(10)


def test_limits_and_requests_may_use_different_names_for_the_same() -> None:
    given = pod(container(resources={"limits": {EPC: "10"}, "requests": {INTEL: "10Mi"}}))
    assert resources_of(decide_pod(given, HERE).pod) == canonical(10)


def test_several_enclave_slots_are_left_to_whoever_wants_them() -> None:
    given = labelled(pod(container(limits={EPC: "10", ENCLAVE: "2"})))
    assert decide_pod(given, HERE).pod is given


@pytest.mark.parametrize(
    "nothing",
    [None, {}, {"limits": None}, {"requests": None}, {"limits": None, "requests": None}, {"limits": {}}],
)
@pytest.mark.complaint("Azure/AKS #2214", "azure-docs #72148")
def test_pods_without_resources_are_let_through_as_they_are(nothing: object) -> None:
    """Azure/AKS 2214 and azure-docs 72148: an add-on that refused ordinary pods, and one that failed on a null map."""
    plain = {"name": "app", "image": "i", "resources": nothing}
    for given in (pod(plain), pod({"name": "app"}), {"spec": {"containers": None}}, {"spec": None}, {}):
        decision = decide_pod(given, HERE)
        assert decision.pod is given
        assert not decision.refusals
        assert not decision.warnings


def test_zero_is_no_epc() -> None:
    given = pod(container(limits={INTEL: "0", EPC: "0"}))
    decision = decide_pod(given, HERE)
    assert decision.pod is given
    assert not decision.refusals


@pytest.mark.parametrize(
    ("limits", "code", "advice"),
    [
        # marblerun 183: 10 and 10Mi.
        ({EPC: "10Mi"}, "unit-twice", "is 10 TiB, because this resource counts MiB already. Write 10."),
        ({ALIYUN: "1Gi"}, "unit-twice", "Write 1024."),
        ({INTEL: "10"}, "bytes-without-unit", "less than one page, because this resource counts bytes. Write 10Mi."),
        ({EPC: "1500m"}, "unit-twice", "Write 2."),
        ({EPC: "2.5"}, "not-whole", "Write 3."),
        ({EPC: "-1"}, "no-amount", "Write 1."),
        ({INTEL: "ten"}, "no-amount", "Write 10Mi."),
        ({EPC: "107374182400"}, "too-much", "Write 102400."),
        ({INTEL: "10Mi", EPC: "5"}, "amounts-differ", "Keep one of them."),
        ({ENCLAVE: "1"}, "epc-missing", "Add a limit such as kubernetes.azure.com/sgx_epc_mem_in_MiB: 10."),
        ({EPC: "10", ENCLAVE: "half"}, "no-amount", "Write 1."),
    ],
)  # fmt: skip
@pytest.mark.complaint("marblerun #183")
def test_what_cannot_be_meant_is_refused_with_what_to_write(limits: dict, code: str, advice: str) -> None:
    given = pod(container(limits=limits))
    decision = decide_pod(given, HERE)
    assert codes(decision) == [code] * len(decision.refusals)
    assert decision.refusals[0].sentence.endswith(advice)
    assert decision.pod is given


def test_requests_must_be_the_limits() -> None:
    differ = pod(container(resources={"limits": {EPC: "10"}, "requests": {EPC: "5"}}))
    alone = pod(container(resources={"requests": {EPC: "5"}}))
    provision = pod(container(resources={"limits": {EPC: "5", PROVISION: "1"}, "requests": {EPC: "5", PROVISION: "2"}}))
    assert codes(decide_pod(differ, HERE)) == ["requests-differ"]
    assert codes(decide_pod(alone, HERE)) == ["limit-missing"]
    assert codes(decide_pod(provision, HERE))[0] == "requests-differ"


def test_a_claim_may_bring_the_epc() -> None:
    claims = {"claims": [{"name": "epc"}], "limits": {ENCLAVE: "1"}}
    given = pod(container(resources=claims))
    decision = decide_pod(given, HERE)
    assert not decision.refusals
    assert resources_of(decision.pod)["requests"] == {ENCLAVE: "1"}


def test_a_resource_of_a_device_class_is_a_claim_of_it() -> None:
    limits = {"deviceclass.resource.kubernetes.io/sgx-epc.confcom.dev": "1"}
    given = pod(container(limits=limits), annotations={"confcom.dev/quote-mode": "out-of-proc"})
    decision = decide_pod(given, HERE)
    assert not decision.refusals
    assert not decision.warnings
    assert resources_of(decision.pod)["limits"] == {**limits, "sgx.confcom.dev/quote-helper": "1"}


def test_a_small_amount_is_rounded_up_and_said_so() -> None:
    decision = decide_pod(pod(container(limits={INTEL: "512Ki"})), HERE)
    assert {warning.sentence for warning in decision.warnings} == {
        "Container app: 512Ki of sgx.intel.com/epc counts as 1 MiB."
    }


@pytest.mark.parametrize("default", [EPC, INTEL, ALIYUN, HYBRID])
@pytest.mark.parametrize("stated", [EPC, INTEL, ALIYUN, HYBRID])
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_what_a_limit_range_filled_in_gives_way_to_what_the_container_states(
    default: str, stated: str, kind: str
) -> None:
    """As the API server hands such a pod over: both names, and an annotation that says which one it set."""
    amounts = {name: "20Mi" if name == INTEL else "20" for name in (stated,)}
    filled = {name: "10Mi" if name == INTEL else "10" for name in (default,) if name != stated}
    which = "container" if kind == "containers" else "init container"
    said = "; ".join(f"cpu, {default} {list_} for {which} app" for list_ in ("request", "limit"))
    annotations = {"kubernetes.io/limit-ranger": f"LimitRanger plugin set: {said}"} if filled else {}
    one = container(limits=amounts | filled | {"cpu": "1"})
    given = (
        pod(one, annotations=annotations)
        if kind == "containers"
        else pod(container("plain"), annotations=annotations, initContainers=[one])
    )
    decision = decide_pod(given, HERE)
    assert not decision.refusals
    assert decision.epc == 20
    assert resources_of(decision.pod, kind)["limits"] == {"cpu": "1"} | canonical(20)["limits"]


def test_a_default_of_a_limit_range_counts_where_the_container_states_nothing() -> None:
    annotations = {"kubernetes.io/limit-ranger": f"LimitRanger plugin set: {INTEL} limit for container app"}
    decision = decide_pod(pod(container(limits={INTEL: "10Mi"}), annotations=annotations), HERE)
    assert decision.epc == 10
    assert resources_of(decision.pod) == canonical(10)


@pytest.mark.parametrize("said", ["", "; ", " for container app", "x", "LimitRanger plugin set: " + "; " * 9999])
def test_an_annotation_that_is_none_of_a_limit_range_changes_nothing(said: object) -> None:
    annotations: dict = {"kubernetes.io/limit-ranger": said}
    decision = decide_pod(pod(container(limits={INTEL: "10Mi", EPC: "20"}), annotations=annotations), HERE)
    assert codes(decision) == ["amounts-differ"]


def test_an_amount_that_is_refused_is_compared_with_nothing() -> None:
    """It counted as 0, so the second sentence was: requests 5 with a limit of 0."""
    given = pod(container(limits={EPC: "5000m", INTEL: "7Mi", ENCLAVE: "x"}))
    given["spec"]["containers"][0]["resources"]["requests"] = {EPC: "5", ENCLAVE: "1"}
    assert codes(decide_pod(given, HERE)) == ["unit-twice", "no-amount"]
