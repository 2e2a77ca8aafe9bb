"""Admission under pods of every shape: the patch makes what was decided and nothing else, and nothing escapes."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from confcom.admission.decision import AdmissionContext, decide_debug, decide_pod
from confcom.admission.pod_json import Grants
from confcom.errors import FormatError
from confcom.protocols.admission import difference
from confcom.protocols.epc import parse_quantity
from confcom.services.webhook.webhook import review
from json_patch_apply import apply_patch
from sgx_pods import AESMD, ALIYUN, ENCLAVE, EPC, HELPER, HYBRID, INTEL, PROVISION

NAMES = ("a", "b", "aesmd")
AMOUNTS = st.sampled_from(("0", "1", "2", "10", "10Mi", "10485760", "1Gi", "4096", "1k", "1.5", "-1", "x", "", "1E"))
RESOURCES = st.dictionaries(
    st.sampled_from((EPC, HYBRID, INTEL, ALIYUN, ENCLAVE, PROVISION, HELPER, "cpu", "a~b/c")), AMOUNTS, max_size=3
)
GOOD_RESOURCES = st.sampled_from(
    (
        {EPC: "10"},
        {HYBRID: "4"},
        {INTEL: "10Mi"},
        {ALIYUN: "1"},
        {INTEL: "5M", "cpu": "1"},
        {EPC: "1", ENCLAVE: "1"},
        {},
    )
)
ENV = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(("A", "SGX_AESM_ADDR")), "value": st.text(max_size=3)}), max_size=2
)
MOUNTS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(("v", "aesmd-socket")),
            "mountPath": st.sampled_from((AESMD, f"{AESMD}/", "/x", "/var/run")),
        }
    ),
    max_size=2,
)
VOLUMES = st.lists(
    st.sampled_from(
        (
            {"name": "v", "hostPath": {"path": AESMD}},
            {"name": "aesmd-socket", "emptyDir": {}},
            {"name": "w", "configMap": {"name": "c"}},
        )
    ),
    max_size=3,
)
ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        (
            "confcom.dev/quote-mode",
            "quote-mode.confcom.dev/a",
            "quote-mode.confcom.dev/b",
            "sgx.intel.com/quote-provider",
            "x/y",
        )
    ),
    st.sampled_from(("out-of-proc", "in-proc", "aesmd", "a", "b", "zzz", "")),
    max_size=3,
)
UNKNOWN = st.fixed_dictionaries({}, optional={"ofTheFuture": st.just({"a/b": [None, {"~": 1.5}]})})


@st.composite
def containers(draw: st.DrawFn, resources: st.SearchStrategy[dict[str, str]]) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=3)):
        body: dict[str, Any] = {"name": name, "image": "i"} | draw(UNKNOWN)
        if draw(st.booleans()):
            limits = dict(draw(resources))
            body["resources"] = {"limits": limits} | ({"requests": dict(limits)} if draw(st.booleans()) else {})
        for member, strategy in (("env", ENV), ("volumeMounts", MOUNTS)):
            if draw(st.booleans()):
                body[member] = draw(strategy)
        found.append(body)
    return found


@st.composite
def pods(draw: st.DrawFn, resources: st.SearchStrategy[dict[str, str]] = GOOD_RESOURCES | RESOURCES) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": draw(containers(resources))} | draw(UNKNOWN)
    if draw(st.booleans()):
        spec["volumes"] = draw(VOLUMES)
    if draw(st.booleans()):
        spec["initContainers"] = [
            one | {"name": f"i{one['name']}", "restartPolicy": draw(st.sampled_from((None, "Always")))}
            for one in draw(containers(resources))
        ]
    metadata = {"name": "p", "annotations": draw(ANNOTATIONS)} if draw(st.booleans()) else {"name": "p"}
    return {"kind": "Pod", "metadata": metadata | draw(UNKNOWN), "spec": spec}


CIRCUMSTANCES = st.builds(
    AdmissionContext,
    namespace=st.just("n"),
    grants=st.sampled_from((Grants(), Grants.parse("n/*"))),
    largest_node=st.sampled_from((None, 0, 8, 10_000)),
    oversized_waits=st.booleans(),
    helper=st.booleans(),
    wiring=st.sampled_from(("plugin", "host-path")),
)


@settings(max_examples=150)
@given(pods(), CIRCUMSTANCES)
def test_a_decision_is_final_and_its_patch_is_exact(pod: dict[str, Any], given_: AdmissionContext) -> None:
    before = copy.deepcopy(pod)
    decision = decide_pod(pod, given_)
    assert pod == before, "the given pod was changed"
    patch = difference(pod, decision.pod)
    assert apply_patch(before, patch) == decision.pod
    if decision.refusals:
        assert not patch
        return
    again = decide_pod(copy.deepcopy(decision.pod), given_)
    assert not again.refusals
    assert again.pod == decision.pod
    assert again.epc == decision.epc
    _check_completeness(decision.pod)
    if given_.wiring == "plugin":
        # No volume and no mount of ours, so nothing that Pod Security could forbid.
        assert _without(decision.pod, "resources", "env") == _without(before, "resources", "env")
    used = _uses_sgx(decision.pod)
    assert decision.pod["metadata"].get("labels") == ({"confcom.dev/uses-sgx": "true"} if used else None)
    assert _without_ours(decision.pod) == _without_ours(before)


def _uses_sgx(pod: dict[str, Any]) -> bool:
    for container in pod["spec"]["containers"] + (pod["spec"].get("initContainers") or []):
        if any(variable["name"] == "SGX_AESM_ADDR" for variable in container.get("env") or ()):
            return True
        limits = (container.get("resources") or {}).get("limits") or {}
        if any(limits.get(name, "0") != "0" for name in (EPC, ENCLAVE, PROVISION, HELPER)):
            return True
    return False


def _check_completeness(pod: dict[str, Any]) -> None:
    """Whoever has EPC has its device, under one name, as limit and request; whoever asks the helper reaches it."""
    volumes = {volume["name"] for volume in pod["spec"].get("volumes") or ()}
    for container in pod["spec"]["containers"] + (pod["spec"].get("initContainers") or []):
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        if any(limits.get(name, "0") != "0" for name in (EPC, HYBRID, INTEL, ALIYUN)):
            for name in (ENCLAVE, EPC):
                assert parse_quantity(limits[name]) == parse_quantity(requests[name]) > 0
            assert not {HYBRID, INTEL, ALIYUN} & (limits.keys() | requests.keys())
        if any(variable["name"] == "SGX_AESM_ADDR" for variable in container.get("env") or ()):
            mounts = [m for m in container.get("volumeMounts") or () if m["mountPath"].rstrip("/") == AESMD]
            assert mounts or parse_quantity(limits[HELPER]) == parse_quantity(requests[HELPER]) > 0
            assert PROVISION not in limits or limits[PROVISION] == "0"
            assert volumes.issuperset(m["name"] for m in mounts if m not in _given_mounts(container))


def _given_mounts(container: dict[str, Any]) -> list[dict[str, Any]]:
    # The strategy may name volumes that the pod does not have, which is for the API server to refuse.
    return container["volumeMounts"][:2]


def _without(pod: dict[str, Any], *members: str) -> list[dict[str, Any]]:
    """The pod's containers less some of their members, and its volumes."""
    spec = pod["spec"]
    found = spec["containers"] + (spec.get("initContainers") or []) + (spec.get("volumes") or [])
    return [{name: value for name, value in one.items() if name not in members} for one in found]


def _without_ours(pod: dict[str, Any]) -> dict[str, Any]:
    """The pod less everything that admission may add or take away."""
    pod = copy.deepcopy(pod)
    pod["metadata"].pop("labels", None)
    spec = pod["spec"]
    spec["volumes"] = [v for v in spec.get("volumes") or () if not v["name"].startswith("aesmd-socket")]
    for container in spec["containers"] + (spec.get("initContainers") or []):
        resources = container.pop("resources", None) or {}
        for kind in ("limits", "requests"):
            for name, amount in (resources.get(kind) or {}).items():
                if name not in (EPC, HYBRID, INTEL, ALIYUN, ENCLAVE, PROVISION, HELPER):
                    container[f"{kind} {name}"] = amount
        container["env"] = [v for v in container.get("env") or () if v["name"] != "SGX_AESM_ADDR"]
        container["volumeMounts"] = [
            m for m in container.get("volumeMounts") or () if m["mountPath"].rstrip("/") != AESMD
        ]
    return pod


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PLACES = (
    ("metadata",), ("spec",), ("metadata", "annotations"), ("metadata", "annotations", "confcom.dev/quote-mode"),
    ("spec", "containers"), ("spec", "containers", 0), ("spec", "containers", 0, "resources"),
    ("spec", "containers", 0, "resources", "limits"), ("spec", "containers", 0, "resources", "limits", EPC),
    ("spec", "containers", 0, "env"), ("spec", "containers", 0, "env", 0), ("spec", "containers", 0, "env", 0, "name"),
    ("spec", "containers", 0, "volumeMounts"), ("spec", "containers", 0, "image"), ("spec", "containers", 0, "name"),
    ("spec", "volumes"), ("spec", "volumes", 0), ("spec", "volumes", 0, "hostPath"), ("spec", "serviceAccountName"),
    ("spec", "ephemeralContainers"),
)  # fmt: skip


def _a_pod() -> dict[str, Any]:
    sgx = {
        "name": "a",
        "image": "i",
        "resources": {"limits": {EPC: "1"}},
        "env": [{"name": "SGX_AESM_ADDR"}],
        "volumeMounts": [{"name": "v", "mountPath": "/x"}],
    }
    volumes = [{"name": "v", "hostPath": {"path": "/x"}}]
    spec = {"containers": [sgx], "volumes": volumes, "serviceAccountName": "s", "ephemeralContainers": []}
    return {"metadata": {"annotations": {"confcom.dev/quote-mode": "out-of-proc"}}, "spec": spec}


@settings(max_examples=150)
@given(st.sampled_from(PLACES), JUNK, st.booleans())
@example(("spec", "containers", 0, "env", 0, "name"), 1, False)
def test_what_is_no_pod_is_refused_and_nothing_escapes(place: tuple[Any, ...], junk: Any, debug: bool) -> None:
    pod = _a_pod()
    holder: Any = pod
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = junk
    given_ = AdmissionContext(namespace="n")
    try:
        decision = decide_debug(pod, {}, given_) if debug else decide_pod(pod, given_)
    except FormatError:
        return
    assert apply_patch(pod, difference(pod, decision.pod)) == decision.pod


@given(JUNK, JUNK, st.sampled_from(("mutate", "validate")), st.sampled_from(("", "ephemeralcontainers")))
def test_every_review_of_anything_has_an_answer(thing: Any, old: Any, task: Any, sub: str) -> None:
    pod = thing if isinstance(thing, dict) else {"spec": thing}
    former = old if isinstance(old, dict) else None
    operation = "UPDATE" if sub else "CREATE"
    request = {"uid": "u", "operation": operation, "object": pod, "oldObject": former, "subResource": sub}
    data = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    try:
        answer, event = review(
            data.encode("utf-8", "surrogatepass"), task, lambda name: AdmissionContext(namespace=name)
        )
    except FormatError:
        return  # NaN and lone surrogates are no JSON
    found = json.loads(answer)["response"]
    assert found["uid"] == "u"
    assert found["allowed"] == (event.outcome != "refused")


@settings(max_examples=100)
@given(pods(), CIRCUMSTANCES)
def test_a_pod_that_was_mutated_validates(pod: dict[str, Any], given_: AdmissionContext) -> None:
    def ask(task: Any, thing: dict[str, Any]) -> dict[str, Any]:
        request = {"uid": "u", "operation": "CREATE", "namespace": "n", "object": thing}
        data = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        return json.loads(review(data.encode(), task, lambda _: given_)[0])["response"]

    mutated = ask("mutate", pod)
    validated = ask("validate", pod)
    patch = json.loads(base64.b64decode(mutated["patch"])) if "patch" in mutated else []
    # What would be changed still is not complete, and is not let through as it is.
    assert validated["allowed"] == (mutated["allowed"] and not patch)
    if mutated["allowed"]:
        assert ask("validate", apply_patch(pod, patch))["allowed"]
        assert "patch" not in ask("mutate", apply_patch(pod, patch))
