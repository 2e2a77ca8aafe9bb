"""Why a pod does not run, from what clusters say of pods."""

from __future__ import annotations

from typing import Any

import pytest

from confcom.addon.rollout import (
    MAX_REASON,
    Problem,
    cannot_be_configured,
    problem_of,
    progress_of,
    shortened,
    was_rejected,
)


def pod(status: dict[str, Any], node: str = "node-1", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "pod-1", **metadata}, "spec": {"nodeName": node}, "status": status}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"name": "main", "ready": False, "state": {"waiting": {"reason": reason, "message": message}}, **more}


def warning(reason: str, message: str) -> dict[str, Any]:
    return {"type": "Warning", "reason": reason, "message": message}


SCHEDULER = "0/3 nodes are available: 3 Insufficient kubernetes.azure.com/sgx_epc_mem_in_MiB."
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": SCHEDULER}
FAILED = {"name": "first", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}
CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]], str, bool]] = [
    (
        "unschedulable",
        pod(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": SCHEDULER}
                ]
            },
            node="",
        ),
        [],
        f"pod pod-1: Unschedulable: {SCHEDULER}",
        False,
    ),
    (
        "no image",
        pod({"containerStatuses": [waiting("ImagePullBackOff", "Back-off\n pulling image")]}),
        [],
        "pod pod-1 on node-1: ImagePullBackOff: Back-off pulling image",
        True,
    ),
    (
        "crash loop",
        pod(
            {
                "containerStatuses": [
                    waiting(
                        "CrashLoopBackOff",
                        "back-off 10s",
                        lastState={"terminated": {"exitCode": 7, "message": "one line\nthe last line\n"}},
                    )
                ]
            }
        ),
        [],
        "pod pod-1 on node-1: CrashLoopBackOff: container main ended with code 7, saying 'the last line'",
        True,
    ),
    (
        "failed init container",
        pod(
            {"initContainerStatuses": [{"name": "first", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]}
        ),
        [],
        "pod pod-1 on node-1: Error: container first ended with code 2",
        False,
    ),
    (
        "turned away by the kubelet",
        pod({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}),
        [],
        "pod pod-1 on node-1: UnexpectedAdmissionError: Allocate failed",
        False,
    ),
    (
        "volume",
        pod({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}),
        [warning("FailedScheduling", "long over"), warning("FailedMount", "no such directory")],
        "pod pod-1 on node-1: FailedMount: no such directory",
        False,
    ),
    (
        "not ready",
        pod({"phase": "Running", "containerStatuses": [{"name": "main", "ready": False, "state": {"running": {}}}]}),
        [warning("Unhealthy", "Startup probe failed")],
        "pod pod-1 on node-1: NotReady: container main is not ready yet",
        False,
    ),
    (
        "just made",
        pod({"phase": "Pending"}),
        [warning("FailedScheduling", "long over")],
        "pod pod-1 on node-1: Pending",
        False,
    ),
]


@pytest.mark.parametrize(
    ("found", "events", "sentence", "firm"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_trouble_is_one_sentence(
    found: dict[str, Any], events: list[dict[str, Any]], sentence: str, firm: bool
) -> None:
    problem = problem_of(found, events)
    assert problem is not None
    assert problem.sentence() == sentence
    assert problem.lasts == firm


def test_a_pod_that_serves_or_goes_away_has_none() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    assert problem_of(pod(ready)) is None
    assert problem_of(pod({}, deletionTimestamp="2026-03-01T12:00:00Z")) is None


def test_the_last_line_of_the_log_says_more() -> None:
    problem = Problem("pod-1", "", "CrashLoopBackOff", "container main ended with code 2", "main")
    assert problem.sentence(["first", "confcom: no EPC", ""]).endswith("ended with code 2: it says 'confcom: no EPC'")
    # What the cluster has of it already is not said twice.
    said = problem._replace(message="container main ended with code 2, saying 'confcom: no EPC'")
    assert said.sentence(["confcom: no EPC"]) == f"pod pod-1: CrashLoopBackOff: {said.message}"


def test_advice_comes_with_what_it_is_about() -> None:
    log = ["starting", "confcom: cannot load libsgx_dcap_ql.so.1", "  what to do: Install Intel's libsgx-dcap-ql."]
    sentence = Problem("pod-1", "", "CrashLoopBackOff", "", "main").sentence(log)
    assert "cannot load libsgx_dcap_ql.so.1 what to do: Install Intel's libsgx-dcap-ql." in sentence
    assert "starting" not in sentence


def test_what_a_container_says_is_bounded() -> None:
    problem = Problem("pod-1", "", "Error", "x" * 10_000)
    assert len(problem.sentence(["y" * 10_000])) < MAX_REASON + 100
    assert len(shortened(problem.sentence())) <= 160


def daemon_set(generation: int = 2, **status: int) -> dict[str, Any]:
    return {"kind": "DaemonSet", "metadata": {"name": "one", "generation": generation}, "status": status}


@pytest.mark.parametrize(
    ("workload", "words", "settled"),
    [
        (daemon_set(), "one 0/0, still being replaced", False),
        (daemon_set(observedGeneration=2), "one 0/0", True),
        (
            daemon_set(observedGeneration=1, desiredNumberScheduled=2, updatedNumberScheduled=2, numberAvailable=2),
            "one 2/2, still being replaced",
            False,
        ),
        (
            daemon_set(observedGeneration=2, desiredNumberScheduled=2, updatedNumberScheduled=1, numberAvailable=2),
            "one 1/2",
            False,
        ),
        (
            daemon_set(observedGeneration=2, desiredNumberScheduled=2, updatedNumberScheduled=2, numberAvailable=2),
            "one 2/2",
            True,
        ),
        (
            {
                "kind": "Deployment",
                "metadata": {"name": "one", "generation": 1},
                "spec": {"replicas": 2},
                "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2},
            },
            "one 2/2, still being replaced",
            False,
        ),
    ],
)
def test_progress_counts_pods_of_the_present_version(workload: dict[str, Any], words: str, settled: bool) -> None:
    found = progress_of(workload)
    assert str(found) == words
    assert found.settled == settled


def test_what_the_kubelet_rejected_is_told_from_what_failed_otherwise() -> None:
    rejected = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
    assert was_rejected(pod(rejected))
    for other in (
        pod(rejected, deletionTimestamp="2026-01-01T00:00:00Z"),
        pod(rejected | {"phase": "Pending"}),
        pod({"phase": "Failed", "reason": "Evicted"}),
        pod({"phase": "Failed"}),
        pod({}),
    ):
        assert not was_rejected(other)


def test_a_container_that_the_kubelet_cannot_put_together() -> None:
    said = waiting("CreateContainerConfigError", "no allocated devices")
    assert cannot_be_configured(pod({"containerStatuses": [said]}))
    assert cannot_be_configured(pod({"initContainerStatuses": [said]}))
    assert not cannot_be_configured(pod({"containerStatuses": [said]}, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert not cannot_be_configured(pod({"containerStatuses": [waiting("CrashLoopBackOff")]}))
    assert not cannot_be_configured(pod({}))
