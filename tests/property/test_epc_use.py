"""Addresses, mappings and metrics: the rules that hold for every input."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from confcom.devices.enclave_use import EnclaveProcess, count_use
from confcom.devices.process_cgroup import NOBODY, CgroupOwner, parse_cgroup
from confcom.devices.process_maps import Range, merge, parse_mapping, size, subtract
from confcom.devices.process_stat import parse_stat
from confcom.protocols.prometheus_text import Sample, parse_samples

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
    assert (found.start, found.size, found.file) == (start, length, (major, minor, inode))
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
