"""EPC in the misc cgroup: real files in a folder, since released kernels do not have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.devices.processes import PATIENCE, MiscUse, ReclaimThread, find_misc, parse_amounts
from confcom.errors import PlatformError

POD = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"
ONE, TWO = "0123456789abcdef" * 4, "fedcba9876543210" * 4
MIB = 1 << 20

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/misc"
GROUP = f"kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{ONE}.scope"


def group(root: Path, path: str, **files: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"misc.{name}").write_text(content)
    return folder


@pytest.fixture
def host(tmp_path: Path) -> Host:
    group(tmp_path, V2, capacity="sev 5\nsgx_epc 176160768\n")
    group(tmp_path, f"{V2}/{GROUP}", current=f"sgx_epc {12 * MIB}\n", max="sev max\nsgx_epc max\n",
          events="sgx_epc.max 3\n")  # fmt: skip
    return Host(tmp_path)


def test_amounts() -> None:
    assert parse_amounts("sgx_epc 10\nsev max\n\nbroken\nsgx_epc.max 3\nodd -1\nodd2 1 2\n") == {
        "sgx_epc": 10,
        "sev": None,
        "sgx_epc.max": 3,
    }


@pytest.mark.promise("M5")
def test_use_and_limit_of_a_container(host: Host) -> None:
    misc = find_misc(host)
    assert misc is not None
    assert misc.capacity == 168 * MIB
    groups = misc.containers()
    assert groups == {ONE: f"/{V2}/{GROUP}"}
    assert misc.use(groups[ONE]) == MiscUse(12 * MIB, None, 3)
    assert misc.limit(groups[ONE], 10 * MIB)
    assert (host.root / V2 / GROUP / "misc.max").read_text() == f"sgx_epc {10 * MIB}\n"
    # Once it stands there, nothing is written; whoever resets it, it comes back.
    assert not misc.limit(groups[ONE], 10 * MIB)
    (host.root / V2 / GROUP / "misc.max").write_text("sgx_epc max\n")
    assert misc.limit(groups[ONE], 10 * MIB)


def test_version_1_has_a_hierarchy_of_its_own(tmp_path: Path) -> None:
    group(tmp_path, V1, capacity="sgx_epc 1048576\n")
    group(tmp_path, f"{V1}/kubepods/burstable/pod{POD}/{ONE}", current="sgx_epc 4096\n", max="sgx_epc 8192\n")
    misc = find_misc(Host(tmp_path))
    assert misc is not None
    assert misc.mount == "/sys/fs/cgroup/misc"
    (path,) = misc.containers().values()
    assert misc.use(path) == MiscUse(4096, 8192, 0)


def test_what_a_container_contains_is_not_a_container_of_its_own(host: Host) -> None:
    group(host.root, f"{V2}/{GROUP}/docker/{TWO}", current="sgx_epc 1\n")
    misc = find_misc(host)
    assert misc is not None
    assert set(misc.containers()) == {ONE}


def test_a_kernel_that_counts_no_epc_has_none(tmp_path: Path) -> None:
    assert find_misc(Host(tmp_path)) is None
    group(tmp_path, V2, capacity="sev 5\n")
    assert find_misc(Host(tmp_path)) is None


def test_why_a_limit_cannot_be_set_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    misc = find_misc(host)
    assert misc is not None
    (host.root / V2 / GROUP / "misc.max").unlink()
    with pytest.raises(PlatformError, match="not enabled") as refused:
        misc.limit(f"/{V2}/{GROUP}", MIB)
    assert "cgroup.subtree_control" in refused.value.advice()
    (host.root / V2 / GROUP / "misc.max").write_text("sgx_epc max\n")

    def read_only(*_: object, **__: object) -> int:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "write", read_only)
    with pytest.raises(PlatformError, match="Read-only file system") as refused:
        misc.limit(f"/{V2}/{GROUP}", MIB)
    assert "writable" in refused.value.advice()


def test_a_container_that_ended_is_no_failure(host: Host) -> None:
    misc = find_misc(host)
    assert misc is not None
    assert not misc.limit(f"/{V2}/gone", MIB)
    assert misc.use(f"/{V2}/gone") is None


def thread(root: Path, pid: int, name: str = "ksgxd", parent: int = 2, ticks: int = 0) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    rest = " ".join(["0"] * 9 + [str(ticks), "0"] + ["0"] * 6 + ["5"] + ["0"] * 20)
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} {rest}\n")


def test_time_of_the_reclaiming_thread(tmp_path: Path) -> None:
    thread(tmp_path, 50, "other", ticks=999)
    thread(tmp_path, 60, "ksgxd", parent=700, ticks=999)  # only called so
    reclaim = ReclaimThread(Host(tmp_path))
    assert reclaim.seconds() is None
    ticks = os.sysconf("SC_CLK_TCK")
    thread(tmp_path, 70, ticks=3 * ticks)
    assert [reclaim.seconds() for _ in range(PATIENCE)][-1] == 3.0
    thread(tmp_path, 70, ticks=4 * ticks)
    assert reclaim.seconds() == 4.0
    thread(tmp_path, 70, "sh", parent=1)  # the number was used again
    assert reclaim.seconds() is None
