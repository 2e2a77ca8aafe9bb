"""What in-proc needs of the host, and how its absence is told."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from confcom.platforms.interface import LIBRARY_FOLDERS, device_obstacles, obstacles_to_in_proc


def complete_host(root: Path) -> Path:
    (root / "dev").mkdir()
    for device in ("sgx_enclave", "sgx_provision"):
        (root / "dev" / device).write_bytes(b"")
    folder = root / "usr/lib/x86_64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libsgx_dcap_ql.so.1").write_bytes(b"")
    return root


def test_a_bare_host_lacks_all_three(tmp_path: Path) -> None:
    assert obstacles_to_in_proc(tmp_path) == (
        "/dev/sgx_enclave does not exist",
        "/dev/sgx_provision does not exist",
        "libsgx_dcap_ql.so.1 is not installed",
    )


def test_a_complete_host_has_no_obstacles(tmp_path: Path) -> None:
    assert obstacles_to_in_proc(complete_host(tmp_path)) == ()


@pytest.mark.parametrize("folder", LIBRARY_FOLDERS)
def test_the_library_is_found_where_packages_put_it(folder: str, tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "usr/lib/x86_64-linux-gnu/libsgx_dcap_ql.so.1").unlink()
    assert obstacles_to_in_proc(host) == ("libsgx_dcap_ql.so.1 is not installed",)
    (host / folder).mkdir(parents=True, exist_ok=True)
    (host / folder / "libsgx_dcap_ql.so.1").write_bytes(b"")
    assert obstacles_to_in_proc(host) == ()


def test_one_missing_device_is_named_alone(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "dev/sgx_provision").unlink()
    assert obstacles_to_in_proc(host) == ("/dev/sgx_provision does not exist",)


def test_a_device_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "dev/sgx_enclave").unlink()
    (host / "dev/sgx_enclave").mkdir()
    assert obstacles_to_in_proc(host) == ("/dev/sgx_enclave cannot be opened: Is a directory",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
@pytest.mark.parametrize("device", ["sgx_enclave", "sgx_provision"])
def test_a_device_of_a_driver_that_is_gone_says_so(tmp_path: Path, device: str) -> None:
    path = complete_host(tmp_path) / "dev" / device
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(240, 7))  # a number for local use, without a driver
    (said,) = device_obstacles(tmp_path)
    reason = "No such device or address: the SGX driver was unloaded or replaced"
    assert said == f"/dev/{device} cannot be opened: {reason}"


def test_a_lack_of_descriptors_says_nothing_of_the_devices(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        found = device_obstacles(host)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_missing_permission_names_the_group(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "dev/sgx_provision").chmod(0)
    assert obstacles_to_in_proc(host) == ("no permission to open /dev/sgx_provision (group sgx_prv)",)


def test_the_names_of_intels_old_driver_count(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "dev/sgx").mkdir()
    for device in ("enclave", "provision"):
        (host / f"dev/sgx_{device}").rename(host / f"dev/sgx/{device}")
    assert obstacles_to_in_proc(host) == ()


def test_a_device_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "dev/sgx_enclave").unlink()
    (host / "dev/sgx_enclave").symlink_to("sgx/enclave")
    assert obstacles_to_in_proc(host) == ("/dev/sgx_enclave is a link to nothing",)


def test_devices_are_asked_for_alone(tmp_path: Path) -> None:
    host = complete_host(tmp_path)
    (host / "usr/lib/x86_64-linux-gnu/libsgx_dcap_ql.so.1").unlink()
    assert device_obstacles(host) == ()
