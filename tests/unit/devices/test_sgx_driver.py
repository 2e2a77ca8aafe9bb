from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from confcom.devices.host import DeviceFile, Host
from confcom.devices.resources import allocation
from confcom.devices.sgx_node import ENCLAVE_PATHS, DriverDevice, find_cpu_flags, find_driver
from confcom.protocols.kubelet import ContainerAllocateResponse, DeviceSpec, Mount


def stand_in(root: Path, *names: str) -> Host:
    for name in names:
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / name).write_text("x")
    return Host(root, stand_ins=True)


@pytest.mark.complaint("Azure/AKS #3815", "Azure/AKS #2883")
def test_the_in_kernel_driver_with_udevs_links(tmp_path: Path) -> None:
    host = stand_in(tmp_path, "sgx_enclave", "sgx_provision")
    (tmp_path / "dev/sgx").mkdir()
    (tmp_path / "dev/sgx/enclave").symlink_to("../sgx_enclave")
    (tmp_path / "dev/sgx/provision").symlink_to("../sgx_provision")
    driver = find_driver(host)
    assert driver.kind == "in-kernel"
    assert driver.enclave is not None
    assert driver.provision is not None
    assert (driver.enclave.file.path, driver.provision.file.path) == ("/dev/sgx_enclave", "/dev/sgx_provision")
    assert driver.missing == ""


@pytest.mark.complaint("Azure/AKS #3815", "Azure/AKS #2883")
def test_the_dcap_driver_of_ubuntu_18_04(tmp_path: Path) -> None:
    driver = find_driver(stand_in(tmp_path, "sgx/enclave", "sgx/provision"))
    assert driver.kind == "dcap"
    assert driver.enclave is not None
    assert driver.enclave.file.path == "/dev/sgx/enclave"
    assert driver.enclave.aliases == ("/dev/sgx_enclave", "/dev/sgx/enclave")


def test_a_link_that_leads_the_other_way_is_still_the_dcap_driver(tmp_path: Path) -> None:
    host = stand_in(tmp_path, "sgx/enclave")
    (tmp_path / "dev/sgx_enclave").symlink_to("sgx/enclave")
    driver = find_driver(host)
    assert driver.kind == "dcap"
    assert driver.enclave is not None
    assert driver.enclave.file.path == "/dev/sgx/enclave"
    assert driver.provision is None


@pytest.mark.complaint("azure-docs #71783", "intel-device-plugins #1526", "intel-device-plugins #1565")
def test_a_real_device_is_passed_under_both_names() -> None:
    device = DriverDevice(DeviceFile("/dev/sgx_enclave", (10, 125), 0o660, 0, 106), ENCLAVE_PATHS)
    assert allocation(Host(), device, environment={"A": "b"}) == ContainerAllocateResponse(
        devices=[
            DeviceSpec(host_path="/dev/sgx_enclave", container_path="/dev/sgx_enclave", permissions="rw"),
            DeviceSpec(host_path="/dev/sgx_enclave", container_path="/dev/sgx/enclave", permissions="rw"),
        ],
        envs={"A": "b"},
    )
    assert device.describe() == "/dev/sgx_enclave (10:125, mode 0660, uid 0, gid 106)"


def test_a_stand_in_is_mounted_and_never_called_a_device(tmp_path: Path) -> None:
    host = stand_in(tmp_path, "sgx_enclave")
    device = find_driver(host).enclave
    assert device is not None
    path = str(tmp_path / "dev/sgx_enclave")
    assert allocation(host, device) == ContainerAllocateResponse(
        mounts=[
            Mount(host_path=path, container_path=alias, read_only=True)
            for alias in ("/dev/sgx_enclave", "/dev/sgx/enclave")
        ]
    )


def test_character_devices_of_a_host_seen_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    try:
        os.mknod(tmp_path / "dev/sgx_enclave", stat.S_IFCHR | 0o660, os.makedev(10, 125))
    except PermissionError:
        pytest.skip("making device nodes needs CAP_MKNOD")
    driver = find_driver(Host(tmp_path))
    assert driver.enclave is not None
    assert driver.enclave.file.number == (10, 125)
    # The node's container runtime is given the host's path, not ours.
    granted = allocation(Host(tmp_path), driver.enclave)
    assert [node.host_path for node in granted.devices] == ["/dev/sgx_enclave"] * 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (None, "neither /dev/sgx_enclave nor /dev/sgx/enclave is a device"),
        ("fpu vme", "the processor has no SGX"),
        ("fpu sgx", "locked launch control"),
        ("fpu sgx sgx_lc", "no driver is loaded"),
    ],
)
@pytest.mark.complaint("intel-device-plugins #1611", "intel-device-plugins #1344", "confidential-containers #224")
def test_why_there_is_no_driver(tmp_path: Path, flags: str | None, reason: str) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n")
    driver = find_driver(Host(tmp_path))
    assert driver.kind == "none"
    assert reason in driver.missing


def test_the_driver_without_launch_control_is_named(tmp_path: Path) -> None:
    assert "/dev/isgx belongs to a driver" in find_driver(stand_in(tmp_path, "isgx")).missing


@pytest.mark.complaint("azure-docs #71783")
def test_a_directory_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "dev/sgx_enclave").mkdir(parents=True)
    assert find_driver(Host(tmp_path, stand_ins=True)).enclave is None


def test_flags_of_the_first_processor(tmp_path: Path) -> None:
    assert find_cpu_flags(Host(tmp_path)) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: a sgx b sgx_lc\n\nflags\t\t: a\n")
    flags = find_cpu_flags(Host(tmp_path))
    assert flags is not None
    assert (flags.sgx, flags.launch_control) == (True, True)
