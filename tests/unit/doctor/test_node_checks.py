"""Processor, devices, /dev and enclave memory of a node."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.doctor.checks import Finding, Level, Role, Subject, host_mounts, node_findings
from sgx_host_folder import complete_host, write


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return complete_host(tmp_path)


def findings(root: Path, **environ: str) -> dict[str, Finding]:
    subject = Subject.of(Host(root, stand_ins=True), environ, Role.APPLICATION)
    return {finding.id: finding for finding in node_findings(subject)}


def test_a_complete_node(host: Path) -> None:
    found = findings(host)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert list(found) == [
        "cpu.sgx",
        "cpu.launch-control",
        "device.enclave",
        "device.provision",
        "dev.exec",
        "epc.size",
    ]
    assert found["epc.size"].found == "128 MiB on 2 NUMA nodes (sysfs)"


def test_a_processor_without_sgx(host: Path) -> None:
    write(host, "proc/cpuinfo", "flags\t\t: fpu aes\n")
    (host / "dev/sgx_enclave").unlink()
    found = findings(host)
    assert found["cpu.sgx"].level is Level.PROBLEM
    assert "BIOS" in found["cpu.sgx"].advice
    assert "cpu.launch-control" not in found


def test_an_old_kernel_with_intels_driver_has_no_flag(host: Path) -> None:
    write(host, "proc/cpuinfo", "flags\t\t: fpu aes\n")
    write(host, "proc/sys/kernel/osrelease", "5.4.0-1032-azure\n")
    finding = findings(host)["cpu.sgx"]
    assert finding.level is Level.OK
    assert "kernel 5.4.0-1032-azure is older than 5.11" in finding.found
    write(host, "proc/sys/kernel/osrelease", "6.8.0\n")
    assert "older" not in findings(host)["cpu.sgx"].found


def test_a_kernel_without_the_driver_is_named(host: Path) -> None:
    write(host, "proc/sys/kernel/osrelease", "4.19.0-27-amd64\n")
    (host / "dev/sgx_enclave").unlink()
    assert "Kernel 4.19.0-27-amd64 has no SGX driver" in findings(host)["device.enclave"].advice


def test_a_driver_without_launch_control_is_named(host: Path) -> None:
    (host / "dev/sgx_enclave").unlink()
    write(host, "dev/isgx", "")
    finding = findings(host)["device.enclave"]
    assert "/dev/isgx belongs to a driver without launch control" in finding.found
    assert "DCAP driver" in finding.advice


def test_what_stands_in_the_place_of_a_device_is_said(host: Path) -> None:
    for name in ("sgx_enclave", "sgx_provision"):
        (host / f"dev/{name}").unlink()
    (host / "dev/sgx_enclave").mkdir()
    (host / "dev/sgx_provision").symlink_to("/dev/nowhere")
    found = findings(host)
    assert found["device.enclave"].found == "/dev/sgx_enclave is a folder, not a device"
    assert "container engine" in found["device.enclave"].advice
    assert found["device.provision"].found == "/dev/sgx_provision is a link to nothing, not a device"


@pytest.mark.complaint("intel-device-plugins #739")
def test_locked_launch_control(host: Path) -> None:
    write(host, "proc/cpuinfo", "flags\t\t: sgx\n")
    assert findings(host)["cpu.launch-control"].level is Level.PROBLEM


def test_no_proc(host: Path) -> None:
    (host / "proc/cpuinfo").unlink()
    (host / "proc/self/mounts").unlink()
    found = findings(host)
    assert (found["cpu.sgx"].level, found["dev.exec"].level) == (Level.WARNING, Level.WARNING)


@pytest.mark.parametrize("device", ["enclave", "provision"])
@pytest.mark.complaint("azure-docs #116281")
def test_a_missing_device_names_both_paths_and_the_grant(host: Path, device: str) -> None:
    (host / f"dev/sgx_{device}").unlink()
    finding = findings(host)[f"device.{device}"]
    assert finding.level is Level.PROBLEM
    assert f"/dev/sgx_{device}" in finding.found
    assert f"/dev/sgx/{device}" in finding.found
    assert "sgx.intel.com/" in finding.advice


def test_provisioning_is_not_for_clients_of_the_helper(host: Path) -> None:
    (host / "dev/sgx_provision").unlink()
    assert findings(host, SGX_AESM_ADDR="1")["device.provision"].level is Level.OK


def test_the_names_of_intels_old_driver(host: Path) -> None:
    (host / "dev/sgx").mkdir()
    (host / "dev/sgx_enclave").rename(host / "dev/sgx/enclave")
    finding = findings(host)["device.enclave"]
    assert finding.level is Level.OK
    assert finding.found.startswith("/dev/sgx/enclave: ")


@pytest.mark.complaint("linux-sgx #996")
def test_mode_and_group_are_shown_by_name(host: Path) -> None:
    path = host / "dev/sgx_provision"
    path.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(path, 0, 1234)
        assert "mode 0660, root:sgx_prv" in findings(host)["device.provision"].found
    assert "mode 0660" in findings(host)["device.provision"].found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
@pytest.mark.complaint("linux-sgx #996")
def test_a_device_that_may_not_be_opened(host: Path) -> None:
    (host / "dev/sgx_provision").chmod(0)
    finding = findings(host)["device.provision"]
    assert finding.level is Level.PROBLEM
    assert "no permission" in finding.found
    assert f"uid {os.geteuid()}" in finding.advice


def test_dev_without_exec(host: Path) -> None:
    write(host, "proc/self/mounts", "overlay / overlay rw 0 0\ntmpfs /dev tmpfs rw,noexec 0 0\n")
    finding = findings(host)["dev.exec"]
    assert finding.level is Level.PROBLEM
    assert "remount" in finding.advice


@pytest.mark.parametrize(
    ("mounts", "level", "point"),
    [
        ("a / overlay rw,noexec 0 0\nb /dev tmpfs rw 0 0\n", Level.OK, "/dev"),
        ("a / overlay rw,noexec 0 0\n", Level.PROBLEM, "/"),
        ("a / x rw 0 0\nb /dev x rw 0 0\nc /dev/sgx_enclave x rw,noexec 0 0\n", Level.PROBLEM, "/dev/sgx_enclave"),
        ("a / x rw 0 0\nb /dev x rw 0 0\nc /dev/sgx x rw,noexec 0 0\n", Level.OK, "/dev"),
        (
            "a / x rw 0 0\nb /dev x rw 0 0\nc /dev/sgx_enclave2 x noexec 0 0\nd /dev/shm x noexec 0 0\n",
            Level.OK,
            "/dev",
        ),
    ],
)
def test_the_mount_that_holds_the_device_counts(host: Path, mounts: str, level: Level, point: str) -> None:
    write(host, "proc/self/mounts", mounts)
    finding = findings(host)["dev.exec"]
    assert (finding.level, finding.found.split()[0]) == (level, point)


def test_the_last_mount_of_a_point_counts(host: Path) -> None:
    write(host, "proc/self/mounts", "a /dev tmpfs rw,noexec 0 0\nb /dev tmpfs rw 0 0\nshort\n")
    assert host_mounts(Host(host)) == {"/dev": ("rw",)}


def test_enclave_memory_from_cpuid(host: Path) -> None:
    for node in ("node0", "node1"):
        (host / f"sys/devices/system/node/{node}/x86/sgx_total_bytes").unlink()
    path = write(host, "dev/cpu/0/cpuid", "")
    with path.open("r+b") as file:
        file.seek(2 << 32 | 0x12)
        file.write(struct.pack("<4I", 1, 0, 96 << 20 | 1, 0))
        file.truncate((3 << 32 | 0x12) + 16)
    assert findings(host)["epc.size"].found == "96 MiB in 1 section (cpuid)"
    with path.open("r+b") as file:
        file.seek(3 << 32 | 0x12)
        file.write(struct.pack("<4I", 1, 0, 1, 255))
        file.truncate((4 << 32 | 0x12) + 16)
    assert findings(host)["epc.size"].found == f"{96 + (255 << 12)} MiB in 2 sections (cpuid)"


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        (("67108864",), "64 MiB (sysfs)"),
        (("1099511627776", "0"), "1048576 MiB on 1 of 2 NUMA nodes (sysfs)"),
        (("67108864", "4096"), "67112960 bytes on 2 NUMA nodes (sysfs)"),
    ],
)
def test_amounts_are_exact_and_places_are_what_was_counted(host: Path, sizes: tuple[str, ...], found: str) -> None:
    for node in ("node0", "node1"):
        shutil.rmtree(host / f"sys/devices/system/node/{node}")
    for number, size in enumerate(sizes):
        write(host, f"sys/devices/system/node/node{number}/x86/sgx_total_bytes", f"{size}\n")
    assert findings(host)["epc.size"].found == found


def test_enclave_memory_that_nobody_tells(host: Path) -> None:
    for node in ("node0", "node1"):
        (host / f"sys/devices/system/node/{node}/x86/sgx_total_bytes").unlink()
    write(host, "proc/sys/kernel/osrelease", "5.15.0-1064-azure\n")
    finding = findings(host)["epc.size"]
    assert finding.level is Level.WARNING
    assert "The kernel (5.15.0-1064-azure) shows it since Linux 5.17" in finding.advice


def test_no_enclave_memory(host: Path) -> None:
    for node in ("node0", "node1"):
        write(host, f"sys/devices/system/node/{node}/x86/sgx_total_bytes", "0\n")
    assert findings(host)["epc.size"].level is Level.PROBLEM
