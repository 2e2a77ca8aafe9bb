from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from confcom.devices.host import MAX_TEXT, Host
from confcom.devices.processes import find_misc
from confcom.devices.sgx_node import declare_node, find_sgx
from confcom.errors import PlatformUnavailable
from no_descriptors import no_descriptors


def test_a_character_device_is_found_with_number_mode_and_owner() -> None:
    found = Host().device("/dev/null")
    assert found is not None
    assert found.number == (1, 3)
    assert not found.is_stand_in
    status = Path("/dev/null").stat()
    assert (found.path, found.mode, found.uid, found.gid) == (
        "/dev/null",
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
    )


def test_links_of_the_host_stay_inside_its_root(tmp_path: Path) -> None:
    (tmp_path / "dev/sgx").mkdir(parents=True)
    (tmp_path / "dev/sgx_enclave").write_text("stand-in")
    (tmp_path / "dev/sgx/enclave").symlink_to("../sgx_enclave")
    (tmp_path / "dev/absolute").symlink_to("/dev/sgx_enclave")
    (tmp_path / "dev/escape").symlink_to("../../../../../../../dev/sgx_enclave")
    host = Host(tmp_path, stand_ins=True)
    for path in ("/dev/sgx/enclave", "/dev/absolute", "/dev/escape"):
        assert host.resolve(path) == "/dev/sgx_enclave", path
        found = host.device(path)
        assert found is not None
        assert found.path == "/dev/sgx_enclave"
    assert host.read("/dev/absolute") == "stand-in"


def test_a_link_that_leads_in_circles_or_nowhere_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("/missing")
    host = Host(tmp_path, stand_ins=True)
    for path in ("/a", "/c", "/none"):
        assert host.resolve(path) is None
        assert host.device(path) is None
        assert host.read(path) is None


def test_ordinary_files_and_directories_are_no_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    assert Host(tmp_path).device("/file") is None
    assert Host(tmp_path).device("/folder") is None
    assert Host(tmp_path, stand_ins=True).device("/folder") is None
    stand_in = Host(tmp_path, stand_ins=True).device("/file")
    assert stand_in is not None
    assert stand_in.is_stand_in


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"x" * (MAX_TEXT + 10))
    text = Host(tmp_path).read("/huge")
    assert text is not None
    assert len(text) == MAX_TEXT


def test_names_are_sorted_and_none_where_there_is_no_directory(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert list(Host(tmp_path).names("/")) == ["a", "b"]
    assert list(Host(tmp_path).names("/none")) == []


def test_the_nodes_own_programs_see_real_hosts_and_simulated_ones_elsewhere(tmp_path: Path) -> None:
    assert Host(tmp_path).outside("/dev/sgx_enclave") == "/dev/sgx_enclave"
    assert Host(tmp_path, stand_ins=True).outside("/dev/sgx_enclave") == str(tmp_path / "dev/sgx_enclave")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    assert Host(tmp_path).read("/secret") is None


@pytest.mark.parametrize(
    "look",
    [
        lambda host: host.read("/file"),
        lambda host: list(host.names("/")),
        lambda host: list(host.folders("/")),
        lambda host: find_sgx(host),
        lambda host: find_misc(host),
    ],
)
def test_what_cannot_be_looked_at_is_not_taken_for_what_is_not_there(
    tmp_path: Path, look: Callable[[Host], object]
) -> None:
    host = declare_node(tmp_path, (8 << 20,), b"machine")
    (tmp_path / "file").write_text("x")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/misc.capacity").write_text("sgx_epc 8388608\n")
    with no_descriptors(), pytest.raises(PlatformUnavailable, match="Too many open files"):
        look(host)
    look(host)
