"""One pass over /proc: a folder in its shape, links to real processes, and this process itself."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections import deque
from pathlib import Path

import pytest

from confcom.devices import processes
from confcom.devices.host import Host
from confcom.devices.processes import MAX_STUCK, CgroupOwner, EnclaveDevice, ProcessFinder
from confcom.devices.sgx_node import declare_node, map_enclave_memory
from confcom.errors import ConfigError, PlatformUnavailable

POD, ONE = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77", "0123456789abcdef" * 4
NULL = Path("/dev/null").stat()
DEVICE = EnclaveDevice(frozenset({(os.major(NULL.st_rdev), os.minor(NULL.st_rdev))}), frozenset({(9, 9, 9)}))
LINE = "7f0000000000-7f0000400000 rw-s 00000000 00:2b 7  {}\n"


def process(root: Path, pid: int, maps: str, *, device: str | None = None) -> Path:
    place = root / "proc" / str(pid)
    (place / "map_files").mkdir(parents=True)
    (place / "maps").write_text(maps)
    (place / "stat").write_text(f"{pid} (app) S 1 " + "0 " * 40)
    (place / "cgroup").write_text(f"0::/kubepods/pod{POD}/{ONE}\n")
    if device is not None:
        (place / "map_files" / "7f0000000000-7f0000400000").symlink_to(device)
    return place


def end_readers() -> None:
    for reader in [one for one in threading.enumerate() if one.name == "processes"]:
        reader.join(60)


@pytest.mark.promise("M5")
@pytest.mark.parametrize("path", ["/dev/sgx_enclave", "/dev/sgx/enclave", "/sgx_enclave", "/opt/dev/sgx_enclave"])
def test_the_device_is_known_by_its_number_under_every_name(tmp_path: Path, path: str) -> None:
    process(tmp_path, 7, LINE.format(path), device="/dev/null")
    seen = ProcessFinder(Host(tmp_path)).look(DEVICE)
    (found,) = seen.enclaves
    assert found.usable == ((0x7F0000000000, 0x7F0000400000),)
    assert found.owner == CgroupOwner(POD, ONE)
    assert (seen.processes, seen.unreadable) == (1, 0)


def test_another_device_or_file_of_that_name_is_not_it(tmp_path: Path) -> None:
    process(tmp_path, 7, LINE.format("/dev/sgx_enclave"), device="/dev/zero")
    process(tmp_path, 8, LINE.format("/tmp/sgx_enclave").replace(" 7 ", " 8 "), device="/etc/passwd")
    assert ProcessFinder(Host(tmp_path)).look(DEVICE).enclaves == ()


def test_where_the_kernel_does_not_tell_the_root_of_the_process_is_asked(tmp_path: Path) -> None:
    place = process(tmp_path, 7, LINE.format("/dev/sgx_enclave"))
    (place / "root").symlink_to(tmp_path / "container")
    (tmp_path / "container/dev").mkdir(parents=True)
    (tmp_path / "container/dev/sgx_enclave").symlink_to("/dev/null")
    # The inode must be the one that is mapped: a file that was put there since is another.
    assert ProcessFinder(Host(tmp_path)).look(DEVICE).enclaves == ()
    (place / "maps").write_text(LINE.format("/dev/sgx_enclave").replace(" 7 ", f" {NULL.st_ino} "))
    assert len(ProcessFinder(Host(tmp_path)).look(DEVICE).enclaves) == 1


def test_where_nothing_can_be_asked_the_usual_path_counts(tmp_path: Path) -> None:
    process(tmp_path, 7, LINE.format("/dev/sgx_enclave"))
    process(tmp_path, 8, LINE.format("/tmp/sgx_enclave").replace(" 7 ", " 8 "))
    assert [found.pid for found in ProcessFinder(Host(tmp_path)).look(DEVICE).enclaves] == [7]
    # A stand-in is one file and no other, whatever it is called.
    stand_in = EnclaveDevice(frozenset(), frozenset({(9, 9, 9)}), stand_in=True)
    assert ProcessFinder(Host(tmp_path)).look(stand_in).enclaves == ()


def test_processes_that_end_in_the_middle_are_none(tmp_path: Path) -> None:
    for pid, missing in enumerate(("maps", "stat", "cgroup"), 7):
        (process(tmp_path, pid, LINE.format("/dev/sgx_enclave"), device="/dev/null") / missing).unlink()
    process(tmp_path, 20, LINE.format("/dev/sgx_enclave"), device="/dev/null")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/21").mkdir()
    seen = ProcessFinder(Host(tmp_path)).look(DEVICE)
    assert [found.pid for found in seen.enclaves] == [20]
    assert (seen.processes, seen.unreadable) == (5, 0)


def test_what_is_refused_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, 7, LINE.format("/dev/sgx_enclave"))
    true_open = os.open

    def refuse(path: str, *rest: int, **more: int) -> int:
        if str(path).endswith("maps"):
            raise PermissionError(13, "Permission denied")
        return true_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    seen = ProcessFinder(Host(tmp_path)).look(DEVICE)
    assert (seen.enclaves, seen.unreadable) == ((), 1)


@pytest.mark.parametrize("place", ["proc", "7/maps", "7", "stat"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_a_descriptor_there_is_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    """The processes that were not read were taken for ended ones, and their EPC for free."""
    for pid in (7, 8):
        process(tmp_path, pid, LINE.format("/dev/sgx_enclave"), device="/dev/null")
    true_open = os.open

    def refuse(path: str, *rest: int, **more: int) -> int:
        if path in (place, str(tmp_path / place)):
            raise OSError(number, os.strerror(number))
        return true_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    finder = ProcessFinder(Host(tmp_path))
    with pytest.raises(PlatformUnavailable, match="Too many open files"):
        finder.look(DEVICE)
    monkeypatch.undo()
    assert sorted(found.pid for found in finder.look(DEVICE).enclaves) == [7, 8]


def test_a_process_that_cannot_be_read_for_another_reason_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in (7, 8):
        process(tmp_path, pid, LINE.format("/dev/sgx_enclave"), device="/dev/null")
    true_open = os.open

    def refuse(path: str, *rest: int, **more: int) -> int:
        if path == "7/maps":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return true_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    seen = ProcessFinder(Host(tmp_path)).look(DEVICE)
    assert ([found.pid for found in seen.enclaves], seen.processes, seen.unreadable) == ([8], 2, 1)


def test_a_process_that_keeps_its_reader_waiting_delays_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does for a file of a server that does not answer."""
    for pid in (7, 8, 9):
        process(tmp_path, pid, LINE.format("/dev/sgx_enclave").replace(" 7 ", f" {pid} "), device="/dev/null")
    slow, answers, true_stat = (tmp_path / "proc/8").stat().st_ino, threading.Event(), os.stat

    def stat_of(path: str, *, dir_fd: int | None = None, **more: bool) -> os.stat_result:
        if dir_fd is not None and os.fstat(dir_fd).st_ino == slow:
            assert answers.wait(60)
        return true_stat(path, dir_fd=dir_fd, **more)

    monkeypatch.setattr(os, "stat", stat_of)
    monkeypatch.setattr(processes, "STUCK_AFTER", 0.3)
    finder = ProcessFinder(Host(tmp_path))
    for _ in range(2):
        seen = finder.look(DEVICE)
        assert sorted(found.pid for found in seen.enclaves) == [7, 9]
        assert (seen.processes, seen.unreadable, list(finder.stuck)) == (3, 1, ["8"])
    answers.set()
    end_readers()
    seen = finder.look(DEVICE)
    assert sorted(found.pid for found in seen.enclaves) == [7, 8, 9]
    assert (seen.unreadable, list(finder.stuck)) == (0, [])


def test_a_reader_whose_names_another_takes_meanwhile_ends(tmp_path: Path) -> None:
    class TakenMeanwhile(deque[str]):
        def __len__(self) -> int:
            return 1

    process(tmp_path, 8, "")
    reader = processes._Reader(tmp_path / "proc", DEVICE, TakenMeanwhile(["8"]))
    reader.run()
    assert (reader.at, reader.found, reader.unreadable) == ("", [], 0)


def test_not_every_process_can_make_a_reader_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = MAX_STUCK + 4
    for pid in range(1, count + 1):
        process(tmp_path, pid, LINE.format("/dev/sgx_enclave"), device="/dev/null")
    answers, true_stat = threading.Event(), os.stat

    def stat_of(path: str, *, dir_fd: int | None = None, **more: bool) -> os.stat_result:
        assert dir_fd is None or answers.wait(60)
        return true_stat(path, dir_fd=dir_fd, **more)

    monkeypatch.setattr(os, "stat", stat_of)
    monkeypatch.setattr(processes, "STUCK_AFTER", 0.01)
    finder = ProcessFinder(Host(tmp_path))
    seen = finder.look(DEVICE)
    assert (seen.processes, seen.unreadable) == (count, count)
    answers.set()
    end_readers()


def test_without_a_device_nothing_is_read(tmp_path: Path) -> None:
    process(tmp_path, 7, LINE.format("/dev/sgx_enclave"), device="/dev/null")
    assert ProcessFinder(Host(tmp_path)).look(EnclaveDevice.of(Host(tmp_path))).processes == 0
    assert ProcessFinder(Host(tmp_path / "none")).look(DEVICE).processes == 0


def test_this_process_maps_the_stand_in_of_a_simulated_node(tmp_path: Path) -> None:
    device = EnclaveDevice.of(declare_node(tmp_path, (1 << 30,), b"machine"))
    assert device.stand_in
    host = Host()

    def mapped() -> int:
        return sum(
            end - start
            for found in ProcessFinder(host).look(device).enclaves
            if found.pid == os.getpid()
            for start, end in found.usable
        )

    assert mapped() == 0
    with map_enclave_memory(tmp_path / "dev/sgx_enclave", 1 << 20):
        assert mapped() == 1 << 20
        # Another file with the same name and content is not it.
        declare_node(tmp_path / "other", (1 << 30,), b"machine")
        with map_enclave_memory(tmp_path / "other/dev/sgx_enclave", 5 * mmap.PAGESIZE):
            assert mapped() == 1 << 20
    assert mapped() == 0


def test_a_character_device_is_known_by_its_number_in_every_container(tmp_path: Path) -> None:
    # As SGX is not everywhere, /dev/zero plays the driver: what is mapped of it privately keeps its name.
    for name in ("host/dev/sgx_enclave", "container/dev/sgx_enclave", "container/dev/other/sgx_enclave"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.makedev(1, 5) if "other" not in name else os.makedev(1, 7)
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, number)
        except PermissionError:
            pytest.skip("only root makes device files")
    device = EnclaveDevice.of(Host(tmp_path / "host"))
    assert device.numbers == {(1, 5)}
    with (tmp_path / "container/dev/sgx_enclave").open("r+b", buffering=0) as file:
        try:
            memory = mmap.mmap(file.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        except PermissionError:
            pytest.skip("devices of this file system may not be used")
        with memory:
            (found,) = [one for one in ProcessFinder(Host()).look(device).enclaves if one.pid == os.getpid()]
            assert [end - start for start, end in found.usable] == [1 << 20]
            # The same file for a host whose device has another number is none.
            other = EnclaveDevice(frozenset({(1, 7)}), device.files)
            assert os.getpid() not in [one.pid for one in ProcessFinder(Host()).look(other).enclaves]


def test_the_stand_in_is_known_by_both_names(tmp_path: Path) -> None:
    node = declare_node(tmp_path, (1 << 30,), b"machine")
    (tmp_path / "dev/sgx").mkdir()
    (tmp_path / "dev/sgx/enclave").symlink_to("../sgx_enclave")
    assert len(EnclaveDevice.of(node).files) == 1


def test_memory_that_cannot_be_mapped_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot map"):
        map_enclave_memory(tmp_path / "none", 1 << 20)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="cannot map"):
        map_enclave_memory(tmp_path / "empty", 1 << 20)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match="more than 60000 mappings"):
        map_enclave_memory(tmp_path / "file", 1 << 40)
