"""Addresses, mappings and metrics: the rules that hold for every input."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from confcom.devices.processes import (
    NOBODY,
    CgroupOwner,
    EnclaveProcess,
    Range,
    count_use,
    merge,
    parse_cgroup,
    parse_mapping,
    parse_stat,
    size,
    subtract,
)
from confcom.protocols.custom_metrics import Sample, parse_samples
from confcom.protocols.epc import CANONICAL, MIB, parse_pod
from confcom.services.metrics.page import EpcMetrics, Seen, put_together

pytestmark = pytest.mark.promise("M5")

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))), max_size=12
)


def addresses(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {address for start, end in ranges for address in range(start, end)}


@given(RANGES)
def test_merging_keeps_the_addresses_and_leaves_no_overlap(ranges: list[Range]) -> None:
    merged = merge(ranges)
    assert addresses(merged) == addresses(ranges)
    assert size(merged) == len(addresses(ranges))
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@given(RANGES, RANGES)
def test_subtracting_is_that_of_sets(ranges: list[Range], others: list[Range]) -> None:
    left = subtract(ranges, others)
    assert addresses(left) == addresses(ranges) - addresses(others)
    assert left == merge(left)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), RANGES, RANGES, st.booleans()), max_size=8))
def test_a_sum_is_never_more_than_the_processes_have_nor_less_than_the_largest(
    rows: list[tuple[int, int, list[Range], list[Range], bool]],
) -> None:
    processes = [
        EnclaveProcess(pid, parent, NOBODY, (1,) if forked else (), tuple(usable), tuple(kept))
        for pid, parent, usable, kept, forked in {row[0]: row for row in rows}.values()
        if parent < pid
    ]
    uses = count_use(processes)
    if not processes:
        assert uses == {}
        return
    use = uses[NOBODY]
    sizes = [len(addresses(process.usable)) for process in processes]
    assert use.processes == len(processes)
    assert use.mapped <= sum(sizes)
    whole = [len(addresses((*process.usable, *process.reserved))) for process in processes]
    assert max(whole) <= use.mapped + use.reserved <= sum(whole)


@given(
    st.integers(0, 2**47), st.integers(1, 2**40), st.sampled_from(("rw-s", "---s", "r-xp")),
    st.integers(0, 0xFFF), st.integers(0, 0xFFFFF), st.integers(1, 2**64 - 1), st.sampled_from((b"", b" (deleted)")),
)  # fmt: skip
def test_what_the_kernel_writes_is_read(
    start: int, length: int, rights: str, major: int, minor: int, inode: int, mark: bytes
) -> None:
    line = f"{start:08x}-{start + length:08x} {rights} 00000000 {major:02x}:{minor:02x} {inode} ".encode()
    found = parse_mapping(line + b"   /dev/sgx_enclave" + mark)
    assert found is not None
    assert (found.start, found.end, found.file) == (start, start + length, (major, minor, inode))
    assert found.usable is (rights != "---s")
    assert found.path == b"/dev/sgx_enclave"


@given(st.binary(max_size=300))
def test_nothing_of_proc_raises(data: bytes) -> None:
    parse_mapping(data)
    parse_stat(data)
    assert isinstance(parse_cgroup(data), CgroupOwner)


@given(
    st.dictionaries(st.sampled_from(("a", "b", "c")), st.text(st.characters(codec="utf-8"), max_size=20), min_size=1),
    st.floats(),
)
def test_samples_come_back_as_they_were_written(labels: dict[str, str], value: float) -> None:
    registry = CollectorRegistry()
    Gauge("g", "Help.", sorted(labels), registry=registry).labels(**labels).set(value)
    (found,) = parse_samples(generate_latest(registry).decode(), {"g"})
    assert found.labels == labels
    assert found == Sample("g", labels, value) or value != value


AMOUNTS = st.none() | st.integers(0, 9)
CONTAINERS = st.lists(st.tuples(AMOUNTS, st.booleans(), st.lists(st.sampled_from("xyz"), max_size=2)), max_size=3)
PHASES = st.sampled_from([None, "Pending", "Running", "Succeeded", "Failed"])


@given(st.lists(st.tuples(CONTAINERS, CONTAINERS, AMOUNTS, PHASES), max_size=5), st.sampled_from([0, MIB]))
def test_what_is_requested_of_containers_adds_up_to_the_nodes_figure_and_to_the_schedulers(
    pods: list[tuple[Any, Any, int | None, str | None]], claimed: int
) -> None:
    def container(name: str, amount: int | None, sidecar: bool, claims: list[str]) -> dict[str, Any]:
        resources: dict[str, Any] = {"claims": [{"name": claim} for claim in claims]}
        if amount is not None:
            resources["limits"] = {CANONICAL: str(amount)}
        return {"name": name, "resources": resources, **({"restartPolicy": "Always"} if sidecar else {})}

    parsed = []
    for number, (apps, init, overhead, phase) in enumerate(pods):
        spec = {
            "containers": [container(f"a{at}", amount, False, claims) for at, (amount, _, claims) in enumerate(apps)],
            "initContainers": [container(f"i{at}", *one) for at, one in enumerate(init)],
            "overhead": {} if overhead is None else {CANONICAL: str(overhead)},
            "resourceClaims": [{"name": name, "resourceClaimName": name} for name in "xyz"],
        }
        metadata = {"name": f"p{number}", "namespace": "n", "uid": f"u{number}"}
        parsed.append(parse_pod({"metadata": metadata, "spec": spec, "status": {"phase": phase}}))
    running = [pod for pod in parsed if not pod.finished]
    used = {name for pod in running for one in pod.containers for name in one.claims}
    use = put_together(parsed, Seen({}, {}, None, None, 0, 0, 0.0), {("n", name): claimed for name in "xyz"})
    metrics = EpcMetrics("n1")
    metrics.use, metrics.pods_known = use, True
    found = {family.name: family.samples for family in metrics.collect()}
    (node,) = found["confcom_epc_node_requested_bytes"]
    assert node.value == sum(pod.requested for pod in running) + claimed * len(used)
    assert node.value == sum(one.value for one in found["confcom_epc_requested_bytes"])
    assert {one.labels["pod"] for one in found["confcom_epc_requested_bytes"]} <= {pod.name for pod in running}
