"""`confcom why POD` against the API on a real socket: what it says of pods in every state, and what it may not read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from confcom.admission.decision import AdmissionContext, decide_pod
from confcom.cli.root import root
from confcom.errors import ClusterError, ClusterRefused, ConfigError, ExitCode
from confcom.manifests.addon import AddonState, state_object
from confcom.manifests.addon_config import AddonConfig
from epc_api import CANONICAL, EpcApi, component, enclave, make_pod, page

MIB = 1 << 20
UID = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"
STATE = "/api/v1/namespaces/confcom-system/configmaps/confcom-addon"
ADDON = ("confcom-system", "confcom-addon")
SETTINGS = AddonConfig(quote_helper=True, metrics=True)


def written(limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A pod as its author writes it."""
    container = {"name": "app", "image": "x", "resources": {"limits": limits or {"sgx.intel.com/epc": "30Mi"}}}
    spec = {"containers": [container | more.pop("container", {})]} | more.pop("spec", {})
    metadata = {"name": "web", "namespace": "default", "annotations": more.pop("annotations", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def stored(pod: dict[str, Any], *, node: str = "", phase: str = "Pending", admitted: bool = True, **status: Any) -> Any:
    """The same in the API: completed by the webhook, defaulted, scheduled to a node."""
    applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(pod)}
    made = json.loads(json.dumps(pod))
    for one in made["spec"]["containers"]:
        one["resources"]["requests"] = dict(one["resources"].get("limits", {}))
    if admitted:
        made = decide_pod(made, AdmissionContext(namespace="default")).pod
    made["metadata"] |= {"uid": UID, "creationTimestamp": "2026-01-01T00:00:00Z"}
    made["metadata"]["annotations"] = made["metadata"]["annotations"] | applied
    made["spec"] |= {"nodeName": node} if node else {}
    return made | {"status": {"phase": phase} | status}


def event(reason: str, message: str, **more: Any) -> dict[str, Any]:
    about = {"kind": "Pod", "namespace": "default", "name": "web", "uid": more.pop("uid", UID)}
    found = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": reason}, "type": "Warning", "reason": reason}
    return found | {"message": message, "involvedObject": about, "lastTimestamp": "2026-01-01T00:00:00Z"} | more


UNSCHEDULABLE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": f"0/1 nodes are available: 1 Insufficient {CANONICAL}.",
        }
    ]
}
READY = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]}
OUT_OF_PROC = {"confcom.dev/quote-mode": "out-of-proc"}


@pytest.fixture
def api() -> Iterator[EpcApi]:
    with EpcApi() as api:
        api.nodes = {"n1": "40"}
        api.config_maps[ADDON] = state_object(AddonState(enabled=True, version="1.2.3", config=SETTINGS))
        api.put(make_pod("sgx-metrics-1", namespace="confcom-system", labels=component("metrics")))
        api.put(make_pod("sgx-quote-helper-1", namespace="confcom-system", labels=component("quote-helper")))
        api.pages["sgx-metrics-1"] = page({"confcom_epc_pods_known": [({"node": "n1"}, 1)]})
        api.pages["sgx-quote-helper-1"] = helper_page()
        yield api


def helper_page(*, self_test: int = 1, tcb: str = "UpToDate", **enclaves: Any) -> bytes:
    samples: dict[str, Any] = {
        "confcom_quote_helper_self_test_ok": [({"part": "all"}, self_test)],
        "confcom_quote_helper_tcb_status": [({"status": one}, int(one == tcb)) for one in ("UpToDate", "OutOfDate")],
    }
    if enclaves:
        samples["confcom_quote_helper_enclave_quotes_total"] = [(enclaves["labels"], enclaves["quotes"])]
    return page(samples)


def ask(api: EpcApi, folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(root, ["why", "web", "--kubeconfig", api.kubeconfig(folder), *arguments],
                                standalone_mode=False)  # fmt: skip
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.output


def answer(api: EpcApi, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, output = ask(api, folder, "-o", "json", *arguments)
    found = json.loads(output)
    return code, found | {"checks": {check["id"]: check for check in found["checks"]}}


def test_a_pod_that_waits_for_epc_says_what_nodes_have(api: EpcApi, tmp_path: Path) -> None:
    api.put(make_pod("other", mib=25))
    api.put(stored(written(annotations=OUT_OF_PROC), **UNSCHEDULABLE))
    code, found = answer(api, tmp_path)
    assert code == ExitCode.PLATFORM
    scheduling = found["checks"]["scheduling"]
    assert "it needs 30 MiB of EPC, and no node has more free than n1: 15 MiB free of 40 MiB" in scheduling["found"]
    assert f"1 Insufficient {CANONICAL}" in scheduling["found"]
    assert "end some (confcom top --sort requested)" in scheduling["advice"]
    assert [(node["name"], node["free"]) for node in found["nodes"]] == [("n1", 15 * MIB)]
    assert found["headline"].startswith("default/web is Pending; scheduling: it needs 30 MiB")
    assert found["checks"]["requests"]["found"] == "30 MiB of EPC on one node (app 30 MiB)"
    assert found["checks"]["translated"]["found"] == (
        f"app: sgx.intel.com/epc: 30Mi became {CANONICAL}: 30, sgx.intel.com/enclave: 1, "
        "sgx.confcom.dev/quote-helper: 1, variable SGX_AESM_ADDR (compared with what was applied)"
    )
    assert found["checks"]["mode"]["found"] == "app: out-of-proc (annotation confcom.dev/quote-mode)"
    assert found["missing"] == []


def test_what_is_free_does_not_depend_on_the_exporters_figures_of_some_seconds_ago(api: EpcApi, tmp_path: Path) -> None:
    known = {"confcom_epc_pods_known": [({"node": "n1"}, 1)]}
    api.pages["sgx-metrics-1"] = page(known | {"confcom_epc_node_requested_bytes": [({"node": "n1"}, 55 * MIB)]})
    api.put(make_pod("other", mib=25))
    api.put(stored(written(), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert "no node has more free than n1: 15 MiB free of 40 MiB" in found["checks"]["scheduling"]["found"]


def test_a_pod_larger_than_every_node(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written({CANONICAL: "50"}), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert found["checks"]["scheduling"]["advice"].startswith("Lower the limits to what one node has, 40 MiB at most")


def test_epc_of_the_quote_helper_is_not_free_for_applications(api: EpcApi, tmp_path: Path) -> None:
    api.node_more = {"sgx.confcom.dev/quote-helper-epc": "8"}
    api.put(make_pod("other", mib=25))
    api.put(stored(written(), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert found["nodes"][0]["allocatable"] == 48 * MIB
    assert found["nodes"][0]["free"] == 15 * MIB
    api.put(stored(written({CANONICAL: "45"}), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert found["checks"]["scheduling"]["advice"].startswith("Lower the limits to what one node has, 40 MiB at most")


def test_a_pod_that_waits_for_something_else_is_told_what(api: EpcApi, tmp_path: Path) -> None:
    status = json.loads(json.dumps(UNSCHEDULABLE))
    status["conditions"][0]["message"] = "0/1 nodes are available: 1 node(s) had untolerated taint {x: y}."
    api.put(stored(written(), **status))
    _, found = answer(api, tmp_path)
    assert found["checks"]["scheduling"]["found"].startswith("0/1 nodes are available: 1 node(s) had untolerated taint")
    assert "taints" in found["checks"]["scheduling"]["advice"]


def test_a_cluster_without_epc(api: EpcApi, tmp_path: Path) -> None:
    api.nodes = {"n1": ""}
    api.put(stored(written(), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert found["checks"]["scheduling"]["found"].startswith("no node publishes EPC")
    assert "confcom.dev/sgx=true" in found["checks"]["scheduling"]["advice"]


def test_a_running_pod_with_quotes(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", **READY))
    api.pages["sgx-quote-helper-1"] = helper_page(labels=enclave(f"pod {UID}", "ab" * 32, debug="true"), quotes=7)
    code, found = answer(api, tmp_path)
    assert code == ExitCode.OK
    assert found["headline"] == "default/web is Running; no problems"
    assert found["checks"]["addon"]["found"] == "enabled, version 1.2.3"
    assert found["checks"]["devices"]["found"] == "app: enclave"
    assert found["checks"]["helper"]["found"] == "serves on node n1"
    assert found["checks"]["quotes"]["found"] == (
        f"7 of MRENCLAVE {'ab' * 8}…, MRSIGNER {'cd' * 8}…, product 1, SVN 2; "
        "a debug enclave: the host reads its memory"
    )
    assert found["checks"]["tcb"]["found"] == "UpToDate, of quotes made on node n1"
    assert found["enclaves"][0]["mr_enclave"] == "ab" * 32
    assert found["nodes"] == []


@pytest.mark.parametrize(
    ("labels", "page_of", "check", "said"),
    [
        ({"expected": "false"}, {}, "quotes", "its signer is none of those expected"),
        ({}, {"tcb": "OutOfDate"}, "tcb", "OutOfDate"),
        ({}, {"self_test": 0}, "helper", "fails its self-test on node n1"),
    ],
)
def test_what_is_wrong_with_quotes_is_a_problem(
    api: EpcApi, tmp_path: Path, labels: dict[str, str], page_of: dict[str, Any], check: str, said: str
) -> None:
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", **READY))
    of_pod = enclave(f"pod {UID}", "ab" * 32, **labels)
    api.pages["sgx-quote-helper-1"] = helper_page(labels=of_pod, quotes=1, **page_of)
    code, found = answer(api, tmp_path)
    assert code == ExitCode.PLATFORM
    assert said in found["checks"][check]["found"]
    assert [one["id"] for one in found["checks"].values() if not one["ok"]] == [check]


def test_a_helper_that_is_being_replaced_serves(api: EpcApi, tmp_path: Path) -> None:
    api.put(make_pod("sgx-quote-helper-2", namespace="confcom-system", labels=component("quote-helper")))
    api.pages["sgx-quote-helper-2"] = helper_page(self_test=0)
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", **READY))
    assert answer(api, tmp_path)[1]["checks"]["helper"]["found"] == "serves on node n1"


def test_a_node_without_a_helper(api: EpcApi, tmp_path: Path) -> None:
    api.remove("sgx-quote-helper-1")
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", **READY))
    helper = answer(api, tmp_path)[1]["checks"]["helper"]
    assert (helper["ok"], helper["found"]) == (False, "none answers on node n1")


def test_a_device_mounted_by_hand(api: EpcApi, tmp_path: Path) -> None:
    mount = {"volumeMounts": [{"name": "dev", "mountPath": "/dev/sgx_enclave"}], "resources": {}}
    spec = {"volumes": [{"name": "dev", "hostPath": {"path": "/dev/sgx_enclave"}}]}
    api.put(stored(written(container=mount, spec=spec), node="n1", phase="Running", **READY))
    api.pod_events = [event("EpcNotRequested", "Set a limit of at least 4.", series={"count": 3})]
    code, found = answer(api, tmp_path)
    assert code == ExitCode.PLATFORM
    assert "Container app gets /dev/sgx_enclave of the host by hand" in found["checks"]["devices"]["found"]
    assert found["checks"]["requests"]["found"] == "no EPC"
    assert "EpcNotRequested 3 times" in found["checks"]["use"]["found"]


def test_a_pod_over_its_limit_now(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written(), node="n1", phase="Running", **READY))
    app = {"node": "n1", "namespace": "default", "pod": "web", "container": "app"}
    api.pages["sgx-metrics-1"] = page(
        {
            "confcom_epc_pods_known": [({"node": "n1"}, 1)],
            "confcom_epc_mapped_bytes": [(app, 60 * MIB)],
            "confcom_epc_over_limit": [(app | {"kind": "over-limit"}, 1)],
        }
    )
    api.pod_events = [
        event("EpcOverLimit", "of an earlier pod of this name", uid="other"),
        event("EpcOverLimit", "Raise the limit to 60."),
    ]
    _, found = answer(api, tmp_path)
    use = found["checks"]["use"]
    assert use["found"].startswith("60 MiB mapped of 30 MiB; over now: app over-limit; EpcOverLimit 1 time, ")
    assert (use["ok"], use["advice"]) == (False, "Raise the limit to 60.")


def test_a_pod_that_the_webhook_has_not_seen(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", admitted=False, **READY))
    _, found = answer(api, tmp_path)
    assert found["checks"]["admission"]["found"].startswith("the SGX webhook did not complete this pod")
    assert found["checks"]["translated"]["found"].startswith("nothing")


def test_a_resource_that_no_node_publishes(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written({"example.com/sgx-epc": "10"}), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    assert "no node publishes example.com/sgx-epc, so the pod waits for ever" in found["checks"]["admission"]["found"]


def test_the_template_of_its_owner_is_what_was_written(api: EpcApi, tmp_path: Path) -> None:
    pod = stored(written(), **UNSCHEDULABLE)
    del pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "controller": True}
    pod["metadata"]["ownerReferences"] = [owner]
    api.put(pod)
    api.objects["/apis/apps/v1/namespaces/default/replicasets/web-1"] = {
        "metadata": {"name": "web-1", "namespace": "default"},
        "spec": {"template": {"metadata": {}, "spec": written({"alibabacloud.com/sgx_epc_MiB": "30"})["spec"]}},
    }
    _, found = answer(api, tmp_path)
    assert found["checks"]["translated"]["found"].startswith("app: alibabacloud.com/sgx_epc_MiB: 30 became ")
    assert found["checks"]["translated"]["found"].endswith("(compared with ReplicaSet web-1)")


@pytest.mark.parametrize("nonsense", ["{", "[" * 100_000, '{"kind": "Pod", "spec": {"containers": 3}}', "null", "7"])
def test_an_annotation_of_any_text_does_no_harm(api: EpcApi, tmp_path: Path, nonsense: str) -> None:
    pod = stored(written(), **UNSCHEDULABLE)
    pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = nonsense
    api.put(pod)
    assert "translated" not in answer(api, tmp_path)[1]["checks"]


def test_a_helper_that_is_off(api: EpcApi, tmp_path: Path) -> None:
    config = AddonConfig(metrics=True)
    api.config_maps[ADDON] = state_object(AddonState(enabled=True, version="1.2.3", config=config))
    api.remove("sgx-quote-helper-1")
    api.put(stored(written(annotations=OUT_OF_PROC), **UNSCHEDULABLE))
    _, found = answer(api, tmp_path)
    helper = found["checks"]["helper"]
    assert (helper["found"], helper["advice"]) == ("it is not enabled", found["checks"]["scheduling"]["advice"])
    assert found["checks"]["scheduling"]["advice"] == "Enable it: confcom addon update --enable-sgxquotehelper"


@pytest.mark.parametrize("left", [None, "disabled"])
def test_an_add_on_that_is_not_enabled(api: EpcApi, tmp_path: Path, left: str | None) -> None:
    del api.config_maps[ADDON]
    if left:
        api.config_maps[ADDON] = state_object(AddonState(enabled=False, version="1.2.3", config=SETTINGS))
    api.put(stored(written(), **UNSCHEDULABLE))
    code, found = answer(api, tmp_path)
    assert code == ExitCode.PLATFORM
    assert found["checks"]["addon"]["found"] == "not enabled in this cluster"
    assert found["checks"]["addon"]["advice"].startswith("Enable it: confcom addon enable")


def test_a_pod_without_sgx(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written({"cpu": "1"}), node="n1", phase="Running", **READY))
    code, output = ask(api, tmp_path)
    assert code == ExitCode.OK
    assert output.splitlines()[0] == "default/web is Running; it uses no SGX"


def test_a_kubelet_that_rejected_it(api: EpcApi, tmp_path: Path) -> None:
    said = {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    api.put(stored(written(), node="n1", phase="Failed", **said))
    _, found = answer(api, tmp_path)
    assert found["checks"]["runs"]["found"].startswith("UnexpectedAdmissionError: no healthy devices present, on node")
    assert "delete the pod" in found["checks"]["runs"]["advice"]


@pytest.mark.parametrize(
    ("forbidden", "unknown"),
    [
        (STATE, "addon"),
        ("/api/v1/namespaces/default/events", "nothing"),
        ("sgx-quote-helper-1/proxy", "helper"),
        ("/api/v1/nodes", "tcb"),
    ],
)
def test_what_may_not_be_read_is_said_and_nothing_is_claimed_of_it(
    api: EpcApi, tmp_path: Path, forbidden: str, unknown: str
) -> None:
    api.put(stored(written(annotations=OUT_OF_PROC), node="n1", phase="Running", **READY))
    api.forbidden.add(forbidden)
    if unknown == "tcb":
        api.pages["sgx-quote-helper-1"] = page({"confcom_quote_helper_quotes_total": [({"peer": "x"}, 1)]})
    code, found = answer(api, tmp_path)
    assert code == ExitCode.OK
    assert any("forbidden" in clause for clause in found["missing"])
    assert unknown not in found["checks"]


def test_the_text_has_one_line_per_check_and_the_nodes(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written(), **UNSCHEDULABLE))
    api.put(make_pod("other", mib=25))
    code, output = ask(api, tmp_path)
    assert code == ExitCode.PLATFORM
    lines = output.splitlines()
    assert lines[0].startswith("default/web is Pending; scheduling: ")
    assert [line.split()[1] for line in lines if line.startswith("ok ")][:3] == ["addon", "requests", "translated"]
    (problem,) = [number for number, line in enumerate(lines) if line.startswith("PROBLEM  scheduling")]
    assert lines[problem + 1].strip().startswith("what to do: Wait until other pods end")
    assert lines[-1].split() == ["n1", "40", "MiB", "15", "MiB"]


def test_events_without_number_are_read_up_to_a_limit(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written(), node="n1", phase="Running", **READY))
    api.pod_events = [event("EpcOverLimit", "x") for _ in range(5000)]
    _, found = answer(api, tmp_path)
    assert found["checks"]["use"]["found"].count("EpcOverLimit") == 5
    assert len([one for one in api.requests if one.endswith("/events")]) == 1


def test_nothing_of_the_cluster_steers_the_terminal(api: EpcApi, tmp_path: Path) -> None:
    status = json.loads(json.dumps(UNSCHEDULABLE))
    status["conditions"][0]["message"] = "\x1b[2J\x07"
    api.put(stored(written(), **status))
    assert "\x1b" not in ask(api, tmp_path)[1]


@pytest.mark.parametrize("word", ["pod/web", "default/web"])
def test_a_pod_may_be_named_as_kubectl_and_top_do(api: EpcApi, tmp_path: Path, word: str) -> None:
    api.put(stored(written({"cpu": "1"}), node="n1", phase="Running", **READY))
    kubeconfig = api.kubeconfig(tmp_path)
    result = CliRunner().invoke(root, ["why", word, "--kubeconfig", kubeconfig])
    assert "default/web is Running" in result.output


@pytest.mark.parametrize("words", [["a/b", "-n", "c"], ["../../nodes"], [""], ["Web"], ["web", "-n", "a/b"]])
def test_what_is_no_name(api: EpcApi, tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(root, ["why", "--kubeconfig", api.kubeconfig(tmp_path), *words])
    assert isinstance(result.exception, ConfigError)
    assert api.requests == []


def test_a_pod_that_does_not_exist(api: EpcApi, tmp_path: Path) -> None:
    with pytest.raises(ClusterRefused, match="there is no pod default/web") as caught:
        ask(api, tmp_path)
    assert "kubectl get pods -n default" in caught.value.advice()


def test_a_pod_that_may_not_be_read(api: EpcApi, tmp_path: Path) -> None:
    api.put(stored(written()))
    api.forbidden.add("/namespaces/default/pods/web")
    with pytest.raises(ClusterRefused, match="is forbidden") as caught:
        ask(api, tmp_path)
    assert caught.value.advice() == "Ask for the right to get pods in namespace default."


def test_a_cluster_that_is_away(api: EpcApi, tmp_path: Path) -> None:
    api.down = True
    with pytest.raises(ClusterError):
        ask(api, tmp_path)
