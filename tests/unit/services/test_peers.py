"""Who a process belongs to, and what it may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from confcom.services.peers import REMEMBER, Peers, peer_name

POD = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"
CONTAINER = "0123456789abcdef" * 4


def host_with(folder: Path, pid: int, cgroup: str) -> Path:
    place = folder / "proc" / str(pid)
    place.mkdir(parents=True, exist_ok=True)
    (place / "cgroup").write_text(cgroup)
    return folder


@pytest.mark.parametrize(
    "cgroup",
    [
        pytest.param(
            f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope\n",
            id="v2 systemd guaranteed",
        ),
        pytest.param(f"0::/kubepods/besteffort/pod{POD}/{CONTAINER}\n", id="v2 cgroupfs"),
        pytest.param(
            f"0::/../../kubepods-burstable-pod{POD.replace('-', '_')}.slice/crio-{CONTAINER}.scope\n",
            id="v2 seen from another container",
        ),
        pytest.param(f"12:pids:/kubepods/burstable/pod{POD}/{CONTAINER}\n1:name=systemd:/x\n", id="v1"),
    ],
)
def test_a_process_in_a_pod_is_known_by_its_pod(tmp_path: Path, cgroup: str) -> None:
    assert peer_name(host_with(tmp_path, 7, cgroup), 7, 0) == f"pod {POD}"


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        pytest.param(f"0::/system.slice/docker-{CONTAINER}.scope\n", f"container {CONTAINER[:12]}", id="systemd"),
        pytest.param(f"0::/docker/{CONTAINER}\n", f"container {CONTAINER[:12]}", id="cgroupfs"),
        pytest.param("0::/user.slice/user-1000.slice/session-2.scope\n", "uid 1000", id="session"),
        pytest.param("", "uid 1000", id="nothing"),
        pytest.param("0::/podcast/pod12345678\n", "uid 1000", id="nearly a pod"),
    ],
)
def test_another_one_by_its_container_or_its_user(tmp_path: Path, cgroup: str, name: str) -> None:
    assert peer_name(host_with(tmp_path, 7, cgroup), 7, 1000) == name


def test_who_cannot_be_seen_is_known_by_the_user(tmp_path: Path) -> None:
    assert peer_name(tmp_path, 0, 65534) == "uid 65534"
    assert peer_name(tmp_path, 4242, 65534) == "uid 65534"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_all_processes_of_a_pod_share_its_connections(tmp_path: Path, clock: Clock) -> None:
    for pid in (7, 8):
        host_with(tmp_path, pid, f"0::/kubepods/pod{POD}/{CONTAINER}\n")
    peers = Peers(tmp_path, max_connections=2, rate=0, burst=1, monotonic=clock)
    first, second, third = peers.enter(7, 0), peers.enter(8, 1000), peers.enter(8, 0)

    assert first is second is third
    assert peers.over_connections(first)
    peers.leave(third)
    assert not peers.over_connections(first)
    assert not peers.over_connections(peers.enter(9, 0))


def test_a_pod_is_looked_up_again_after_a_while(tmp_path: Path, clock: Clock) -> None:
    peers = Peers(tmp_path, max_connections=2, rate=0, burst=1, monotonic=clock)
    assert peers.enter(7, 5).name == "uid 5"
    host_with(tmp_path, 7, f"0::/kubepods/pod{POD}/{CONTAINER}\n")
    assert peers.enter(7, 5).name == "uid 5"
    clock.now += REMEMBER + 0.1

    assert peers.enter(7, 5).name == f"pod {POD}"


def test_a_rate_allows_a_burst_and_then_so_many_a_second(tmp_path: Path, clock: Clock) -> None:
    peers = Peers(tmp_path, max_connections=2, rate=10, burst=3, monotonic=clock)
    peer = peers.enter(0, 1)

    assert [peers.take_token(peer) for _ in range(4)] == [True, True, True, False]
    clock.now += 0.11
    assert [peers.take_token(peer) for _ in range(2)] == [True, False]
    clock.now += 60
    assert [peers.take_token(peer) for _ in range(4)] == [True, True, True, False]


def test_reconnecting_does_not_refill_the_rate(tmp_path: Path, clock: Clock) -> None:
    peers = Peers(tmp_path, max_connections=2, rate=10, burst=1, monotonic=clock)
    peer = peers.enter(0, 1)
    assert peers.take_token(peer)
    peers.leave(peer)

    assert not peers.take_token(peers.enter(0, 1))


def test_peers_that_left_are_forgotten(tmp_path: Path, clock: Clock) -> None:
    peers = Peers(tmp_path, max_connections=2, rate=10, burst=1, monotonic=clock)
    for uid in range(50):
        peers.leave(peers.enter(0, uid))
    assert len(peers) == 50
    clock.now += 10
    peers.forget()

    assert len(peers) == 0
    unlimited = Peers(tmp_path, max_connections=2, rate=0, burst=1, monotonic=clock)
    unlimited.leave(unlimited.enter(0, 1))
    assert len(unlimited) == 0
