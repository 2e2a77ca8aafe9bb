"""Who a process belongs to, and what it may have."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from confcom.services.quote_helper.peers import FUTILE, FUTILE_RATE, GONE, OURSELVES, REMEMBER, Peers, peer_name

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


CONNECT = """
import os, socket, sys
if int(sys.argv[2]): os.setuid(int(sys.argv[2]))
clients = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[3]))]
for client in clients: client.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


class Door:
    """A listening socket, and processes that connect to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        path.chmod(0o777)
        self.listener.listen(64)
        self.accepted: list[socket.socket] = []
        self.processes: list[subprocess.Popen[str]] = []

    def process(self, user: int = 0, connections: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CONNECT, str(self.path), str(user), str(connections)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        return process

    def accept(self) -> socket.socket:
        self.accepted.append(self.listener.accept()[0])
        return self.accepted[-1]

    def end(self, process: subprocess.Popen[str]) -> None:
        process.communicate(timeout=60)


@pytest.fixture
def door() -> Iterator[Door]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        door = Door(Path(folder) / "socket")
        yield door
        for process in door.processes:
            if process.poll() is None:
                door.end(process)
        for client in (*door.accepted, door.listener):
            client.close()


@pytest.fixture
def peers(tmp_path: Path, clock: Clock) -> Iterator[Peers]:
    peers = Peers(tmp_path, max_connections=2, rate=10, burst=3, monotonic=clock)
    yield peers
    peers.close()


def test_all_processes_of_a_pod_share_its_connections(tmp_path: Path, door: Door, peers: Peers, clock: Clock) -> None:
    for process in (door.process(), door.process()):
        host_with(tmp_path, process.pid, f"0::/kubepods/pod{POD}/{CONTAINER}\n")
    first, second = (peers.of(door.accept(), clock.now)[0] for _ in range(2))

    assert first is second
    assert first.name == f"pod {POD}"
    first.connections = 2
    assert not peers.over_connections(first)
    first.connections = 3
    assert peers.over_connections(first)


def test_processes_that_ended_before_they_were_looked_up_share_one_peer(door: Door, peers: Peers, clock: Clock) -> None:
    """A process of root's could otherwise be as many as there are user ids."""
    users = (1001, 1002, 1003) if os.geteuid() == 0 else (0, 0, 0)
    clients = []
    for user in users:
        process = door.process(user)
        clients.append(door.accept())
        door.end(process)

    assert {peers.of(client, clock.now)[0].name for client in clients} == {GONE}
    assert peers.of(connected_by_us(door), clock.now)[0].name == OURSELVES


@pytest.mark.parametrize("kernel", ["with SO_PEERPIDFD", "without"])
def test_a_process_id_means_the_same_pod_only_as_long_as_the_process_runs(
    tmp_path: Path, door: Door, peers: Peers, clock: Clock, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """Process ids are used again: what connects later with this one is another's."""
    if kernel == "without":
        monkeypatch.setattr("confcom.services.quote_helper.peers._SO_PEERPIDFD", 9999)
    process = door.process(connections=3)
    clients = [door.accept() for _ in range(3)]
    host_with(tmp_path, process.pid, f"0::/kubepods/pod{POD}/{CONTAINER}\n")
    assert peers.of(clients[0], clock.now)[0].name == f"pod {POD}"
    host_with(tmp_path, process.pid, "0::/\n")
    assert peers.of(clients[1], clock.now)[0].name == f"pod {POD}"  # remembered
    door.end(process)
    if kernel == "without":
        clock.now += REMEMBER + 0.1
    else:
        assert select.select([peers.ended], [], [], 60)[0]
        peers.forget_ended()

    assert peers.of(clients[2], clock.now)[0].name == GONE


def test_remembered_processes_do_not_use_up_the_descriptors(tmp_path: Path, door: Door, clock: Clock) -> None:
    peers = Peers(tmp_path, max_connections=2, rate=0, burst=3, monotonic=clock, remembered=2)
    clients = []
    for _ in range(5):
        door.process()
        clients.append(door.accept())
    before = open_files()
    for client in clients:
        peers.of(client, clock.now)

    assert open_files() - before <= 2
    peers.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def connected_by_us(door: Door) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.path))
        return door.accept()


def test_connections_that_come_to_nothing_are_limited(door: Door, peers: Peers, clock: Clock) -> None:
    door.process()
    peer, _ = peers.of(door.accept(), clock.now)
    assert peers.is_welcome(peer, clock.now)
    taken = 0
    while peers.take_futile(peer):
        taken += 1
    assert taken == FUTILE - 1
    assert not peers.is_welcome(peer, clock.now)
    clock.now += 5 / FUTILE_RATE
    assert peers.is_welcome(peer, clock.now)
    peer.connections = 4  # twice as many as it may have
    assert not peers.is_welcome(peer, clock.now)


def test_our_own_self_tests_are_always_welcome(door: Door, peers: Peers, clock: Clock) -> None:
    peer, _ = peers.of(connected_by_us(door), clock.now)
    peer.futile, peer.connections = 0, 1000

    assert peers.is_welcome(peer, clock.now)


def test_want_of_descriptors_does_not_make_a_pod_a_user(tmp_path: Path, door: Door, peers: Peers, clock: Clock) -> None:
    """Not for as long as its process runs: then every pod of root would have one share."""
    process = door.process(connections=2)
    host_with(tmp_path, process.pid, f"0::/kubepods/burstable/pod{POD}/{CONTAINER}\n")
    first, second = door.accept(), door.accept()
    with no_descriptor_left():
        found = [peers.of(first, clock.now)[0].name]
    clock.now += 0.001
    found.append(peers.of(second, clock.now)[0].name)

    assert found == [f"uid {os.getuid()}", f"pod {POD}"]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class FullEpoll:
    """What epoll does for a user at `fs.epoll.max_user_watches`."""

    def register(self, descriptor: int, events: int) -> None:
        raise OSError(errno.ENOSPC, f"{descriptor} {events}")

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return []

    def close(self) -> None:
        pass


def test_a_user_who_watches_too_much_is_known_by_its_pod_for_a_while(
    tmp_path: Path, door: Door, peers: Peers, clock: Clock
) -> None:
    process = door.process(connections=2)
    host_with(tmp_path, process.pid, f"0::/kubepods/burstable/pod{POD}/{CONTAINER}\n")
    peers.ended.close()
    peers.ended = FullEpoll()  # type: ignore[assignment]
    before = open_files()
    client = door.accept()
    assert peers.of(client, clock.now)[0].name == f"pod {POD}"
    assert open_files() == before + 1  # the client's
    host_with(tmp_path, process.pid, "0::/\n")
    clock.now += REMEMBER + 0.1

    assert peers.of(door.accept(), clock.now)[0].name == f"uid {os.getuid()}"


def test_peers_are_active_between_two_looks_and_our_self_tests_are_none(door: Door, peers: Peers, clock: Clock) -> None:
    peers.of(connected_by_us(door), clock.now)
    assert (peers.active(), peers.several) == (0, False)
    door.process(user=1)
    door.process(user=2, connections=2)
    for _ in range(3):
        peers.of(door.accept(), clock.now)

    assert (peers.active(), peers.several) == (2, True)
    assert (peers.active(), peers.several) == (0, False)


def test_a_rate_allows_a_burst_and_then_so_many_a_second(door: Door, peers: Peers, clock: Clock) -> None:
    door.process()
    peer, _ = peers.of(door.accept(), clock.now)

    assert [peers.take_token(peer) for _ in range(4)] == [True, True, True, False]
    peers.forget()  # without connections, and not to be forgotten: that would refill its rate
    clock.now += 0.11
    assert [peers.take_token(peer) for _ in range(2)] == [True, False]
    clock.now += 60
    assert [peers.take_token(peer) for _ in range(4)] == [True, True, True, False]


def test_peers_are_forgotten_once_nothing_is_held_against_them(door: Door, peers: Peers, clock: Clock) -> None:
    door.process(connections=2)
    first, second = door.accept(), door.accept()
    peer, _ = peers.of(first, clock.now)
    peers.take_futile(peer)
    peer.turned_away = 3
    peers.forget()
    assert peers.of(second, clock.now)[0] is peer
    assert peers.turned_away() == [(peer.name, 3)]
    clock.now += 60
    peers.forget()

    assert peers.of(second, clock.now)[0] is not peer
