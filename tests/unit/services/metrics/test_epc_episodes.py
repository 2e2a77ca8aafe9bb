"""When a container is over its EPC, and how often that is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.devices.processes import NOBODY, CgroupOwner, EnclaveUse, MiscUse
from confcom.protocols.epc import EpcContainer, EpcPod
from confcom.services.metrics.page import ContainerUse, Episodes, Kind, Seen, explain, put_together

MIB = 1 << 20
POD = EpcPod("uid", "ns", "pod")
pytestmark = pytest.mark.promise("M5")


def row(mib: float, requested: int | None = 10, *, pod: EpcPod | None = POD, **more: object) -> ContainerUse:
    size = None if requested is None else requested * MIB
    return ContainerUse(pod, "app", "id", size, EnclaveUse(int(mib * MIB), 0, 1), **more)  # type: ignore[arg-type]


def run(episodes: Episodes, uses: list[tuple[float, ContainerUse | None]]) -> list[float]:
    """Times at which an episode was told."""
    return [now for now, use in uses if episodes.step([] if use is None else [use], now)]


def test_an_episode_is_told_once_after_the_patience() -> None:
    episodes = Episodes(tolerance=0.1, patience=30)
    assert run(episodes, [(now, row(12)) for now in range(0, 300, 10)]) == [30]


def test_what_is_within_the_tolerance_is_no_episode() -> None:
    episodes = Episodes(tolerance=0.1, patience=0)
    assert run(episodes, [(0, row(11)), (1, row(11.1))]) == [1]


def test_a_short_excess_is_none() -> None:
    episodes = Episodes(tolerance=0, patience=30)
    assert run(episodes, [(0, row(12)), (20, row(12)), (25, row(8)), (29, row(12)), (58, row(12)), (59, row(12))]) == [
        59
    ]


def test_wavering_does_not_begin_another_one_but_a_lasting_return_ends_it() -> None:
    episodes = Episodes(tolerance=0, patience=10)
    uses = [(0, row(12)), (10, row(12)), (12, row(8)), (15, row(12)), (40, row(12))]  # told at 10, wavers at 12
    uses += [(50, row(8)), (60, row(8)), (61, row(12)), (71, row(12))]  # ended at 60, told anew at 71
    assert run(episodes, uses) == [10, 71]


def test_a_container_that_went_is_forgotten() -> None:
    episodes = Episodes(tolerance=0, patience=10)
    assert run(episodes, [(0, row(12)), (10, row(12)), (11, None), (12, row(12)), (22, row(12))]) == [10, 22]


def test_use_without_a_request_is_of_another_kind() -> None:
    episodes = Episodes(tolerance=5, patience=0)
    (begun,) = episodes.step([row(1, None)], 0)
    assert begun.kind is Kind.NO_REQUEST
    text = explain(begun, node="n1", exact=False)
    assert "has 1 MiB of enclave memory mapped on node n1 and requests no EPC" in text
    assert "at least 1." in text
    # It then requests too little: that is news.
    (begun,) = episodes.step([row(100, 1)], 1)
    assert begun.kind is Kind.OVER_LIMIT


def test_advice_is_about_what_the_pod_says() -> None:
    claiming = EpcPod("uid", "ns", "pod", containers=(EpcContainer("app", "id", None, ("claim",)),))
    asking = EpcPod("uid", "ns", "pod", containers=(EpcContainer("app", "id", 10 * MIB),))
    texts = []
    for pod in (claiming, asking):
        (begun,) = Episodes(tolerance=0, patience=0).step([row(12.5, pod=pod)], 0)
        texts.append(explain(begun, node="n1", exact=True))
    assert "Raise the capacity epc of its claim to 13Mi," in texts[0]
    assert "Raise the limit kubernetes.azure.com/sgx_epc_mem_in_MiB to 13," in texts[1]
    assert "has 12.5 MiB in EPC on node n1 and requested 10 MiB" in texts[1]


def test_nobody_is_accused_without_proof() -> None:
    episodes = Episodes(tolerance=0, patience=0)
    assert episodes.step([row(50, pod=None), row(50, None, judged=False), row(0, None)], 0) == []


def test_what_is_in_epc_counts_where_the_kernel_knows() -> None:
    use = row(50, 10, misc=MiscUse(9 * MIB, 10 * MIB, 4))
    assert Episodes(tolerance=0, patience=0).judge(use) is None
    assert use.counted == 9 * MIB


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), max_size=40), st.floats(0, 50))
def test_between_two_reports_lies_a_return(steps: list[tuple[float, float]], patience: float) -> None:
    """Whatever happens, a report follows another only after a time within the request that was long enough."""
    episodes = Episodes(tolerance=0, patience=patience)
    now, quiet_since, longest = 0.0, None, 0.0
    told_before = False
    for pause, mib in steps:
        now += pause
        over = mib * MIB > 10 * MIB
        told = bool(episodes.step([row(mib)], now))
        if not over:
            quiet_since = now if quiet_since is None else quiet_since
            longest = max(longest, now - quiet_since)
        else:
            quiet_since = None
        if told:
            assert over
            assert not told_before or longest >= patience
            told_before, longest = True, 0.0


def seen(use: dict[CgroupOwner, EnclaveUse], groups: dict[str, MiscUse] | None = None) -> Seen:
    return Seen(use, groups or {}, None, None, 0, 0, 0.0)


def test_use_is_matched_by_the_containers_id() -> None:
    pods = [
        EpcPod("u1", "a", "one", requested=10 * MIB, containers=(EpcContainer("c", "id1", 10 * MIB, (), 10 * MIB),)),
        EpcPod("u2", "a", "two", containers=(EpcContainer("c", "id2"),)),
        EpcPod("u3", "a", "idle", containers=(EpcContainer("c", "id3"),)),
        EpcPod(
            "u4",
            "a",
            "done",
            requested=5 * MIB,
            finished=True,
            containers=(EpcContainer("c", "", 5 * MIB, (), 5 * MIB),),
        ),
    ]
    use = {
        CgroupOwner("u1", "id1"): EnclaveUse(12 * MIB, 0, 1),
        CgroupOwner("u2", "id2"): EnclaveUse(2 * MIB, 0, 1),
        CgroupOwner("u9", "id9"): EnclaveUse(3 * MIB, 0, 1),
        NOBODY: EnclaveUse(4 * MIB, MIB, 2),
    }
    found = put_together(pods, seen(use))
    assert [(line.labels, line.requested, line.use.mapped) for line in found.containers] == [
        (("", "", "pod u9 container id9"), None, 3 * MIB),
        (("a", "one", "c"), 10 * MIB, 12 * MIB),
        (("a", "two", "c"), None, 2 * MIB),
    ]
    assert found.outside == EnclaveUse(4 * MIB, MIB, 2)
    assert found.requested == 10 * MIB
    assert found.mapped == 21 * MIB
    assert found.in_use is None


def test_what_the_kernel_counts_is_added_up() -> None:
    pods = [EpcPod("u1", "a", "one", containers=(EpcContainer("c", "id1", MIB),))]
    found = put_together(pods, seen({}, {"id1": MiscUse(7, 8, 0), "other": MiscUse(9, None, 0)}))
    assert found.in_use == 7


def test_claims_are_part_of_the_request() -> None:
    pod = EpcPod("u1", "a", "one", containers=(EpcContainer("c", "id1", None, ("x", "gpu")),))
    use = {CgroupOwner("u1", "id1"): EnclaveUse(MIB, 0, 1)}
    (unknown,) = put_together([pod], seen(use)).containers
    assert (unknown.requested, unknown.judged) == (None, False)
    (known,) = put_together([pod], seen(use), {("a", "x"): 2 * MIB, ("a", "gpu"): 0}).containers
    assert (known.requested, known.judged) == (2 * MIB, True)
    (other,) = put_together([pod], seen(use), {("a", "x"): 0, ("a", "gpu"): 0}).containers
    assert (other.requested, other.judged) == (None, True)
