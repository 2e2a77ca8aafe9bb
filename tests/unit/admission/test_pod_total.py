"""A pod's EPC as the scheduler counts it."""

from __future__ import annotations

import pytest

from confcom.admission.decision import AdmissionContext, decide_pod
from sgx_pods import EPC, container, pod


def sgx(name: str, mib: int, **more: object) -> dict:
    return container(name, {EPC: str(mib)}, **more)


def sidecar(name: str, mib: int) -> dict:
    return sgx(name, mib, restartPolicy="Always")


@pytest.mark.parametrize(
    ("init", "containers", "total"),
    [
        ([], [3, 4], 7),
        ([("init", 10)], [3, 4], 10),
        ([("init", 5)], [3, 4], 7),
        ([("sidecar", 2)], [3, 4], 9),
        ([("sidecar", 2), ("init", 6)], [3], 8),
        ([("init", 6), ("sidecar", 2)], [3], 6),
        ([("sidecar", 2), ("init", 1), ("sidecar", 3)], [1], 6),
        ([("sidecar", 2), ("sidecar", 3), ("init", 1)], [], 6),
    ],
)
def test_a_pod_takes_what_the_scheduler_says(init: list, containers: list, total: int) -> None:
    given = pod(
        *(sgx(f"c{index}", mib) for index, mib in enumerate(containers)),
        *([container("plain")] if not containers else []),
        initContainers=[(sidecar if kind == "sidecar" else sgx)(f"i{i}", mib) for i, (kind, mib) in enumerate(init)],
    )
    assert decide_pod(given, AdmissionContext(namespace="n")).epc == total


def test_more_than_any_node_has_is_refused() -> None:
    given = pod(sgx("a", 100), sgx("b", 69))
    small = AdmissionContext(namespace="n", largest_node=168)
    (refusal,) = decide_pod(given, small).refusals
    assert refusal.sentence == (
        "The pod asks for 169 MiB of EPC on one node, and the largest node of this cluster has 168 MiB. Lower the "
        "limits, or add a node that has as much."
    )
    assert not decide_pod(given, AdmissionContext(namespace="n", largest_node=169)).refusals
    assert not decide_pod(given, AdmissionContext(namespace="n", largest_node=None)).warnings


def test_without_sgx_nodes_or_where_nodes_may_come_it_is_a_warning() -> None:
    given = pod(sgx("a", 169))
    waits = decide_pod(given, AdmissionContext(namespace="n", largest_node=168, oversized_waits=True))
    none = decide_pod(given, AdmissionContext(namespace="n", largest_node=0))
    assert not waits.refusals
    assert not none.refusals
    assert [warning.code for warning in (*waits.warnings, *none.warnings)] == [
        "no-node-holds-it-yet",
        "no-node-has-epc",
    ]


@pytest.mark.parametrize(
    ("overhead", "total"), [({EPC: "32"}, 42), ({EPC: "1k"}, 1010), ({"cpu": "1"}, 10), (None, 10)]
)
def test_the_overhead_of_a_runtime_class_is_part_of_the_pod(overhead: dict | None, total: int) -> None:
    given = pod(container(limits={EPC: "10"}), overhead=overhead)
    decision = decide_pod(given, AdmissionContext(namespace="apps", largest_node=total))
    assert decision.epc == total
    assert not decision.refusals
    assert not decision.warnings
    small = AdmissionContext(namespace="apps", largest_node=total - 1)
    assert [finding.code for finding in decide_pod(given, small).refusals] == ["no-node-holds-it"]
