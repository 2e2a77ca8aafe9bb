from __future__ import annotations

import struct
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.devices.sgx_node import EpcSection, epc_section_size, find_epc


def sysfs(root: Path, *sizes: str | None) -> None:
    for number, size in enumerate(sizes):
        node = root / f"sys/devices/system/node/node{number}"
        (node / "x86").mkdir(parents=True)
        if size is not None:
            (node / "x86/sgx_total_bytes").write_text(size)


def cpuid(root: Path, *sections: tuple[int, int]) -> None:
    """The kernel's file: 16 bytes of registers at the position sub-leaf << 32 | leaf."""
    path = root / "dev/cpu/0/cpuid"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for subleaf, (base, size) in enumerate([*sections, (0, 0)], 2):
            kind = 1 if size else 0
            registers = struct.pack(
                "<4I", base & 0xFFFFF000 | kind, base >> 32, size & 0xFFFFF000 | 1 if size else 0, size >> 32
            )
            file.seek(subleaf << 32 | 0x12)
            file.write(registers)


def test_sysfs_gives_the_sections_of_each_numa_node(tmp_path: Path) -> None:
    sysfs(tmp_path, "68719476736\n", "0\n", "34359738368\n")
    found = find_epc(Host(tmp_path))
    assert found.sections == (EpcSection(0, 64 << 30), EpcSection(2, 32 << 30))
    assert (found.source, found.numa_nodes, found.size, found.missing) == ("sysfs", 3, 96 << 30, "")


def test_a_kernel_that_counts_no_epc_is_believed(tmp_path: Path) -> None:
    sysfs(tmp_path, "0\n", "0\n")
    cpuid(tmp_path, (0x80000000, 64 << 20))
    found = find_epc(Host(tmp_path))
    assert found.sections == ()
    assert "is 0" in found.missing


def test_without_sysfs_cpuid_gives_sections_of_unknown_nodes(tmp_path: Path) -> None:
    sysfs(tmp_path, None, None)
    cpuid(tmp_path, (0x40_0000_0000, 6 << 30), (0x80_0000_0000, 2 << 30))
    found = find_epc(Host(tmp_path))
    assert found.sections == (EpcSection(None, 6 << 30), EpcSection(None, 2 << 30))
    assert (found.source, found.numa_nodes) == ("cpuid", 2)


def test_more_than_eight_sections_are_not_read(tmp_path: Path) -> None:
    cpuid(tmp_path, *[(number << 32, 1 << 20) for number in range(12)])
    assert len(find_epc(Host(tmp_path)).sections) == 8


def test_a_host_with_neither_says_what_is_missing(tmp_path: Path) -> None:
    found = find_epc(Host(tmp_path))
    assert (found.sections, found.source) == ((), "none")
    assert "sgx_total_bytes is not there, and /dev/cpu/0/cpuid not available" in found.missing
    cpuid(tmp_path)
    assert "names no EPC section" in find_epc(Host(tmp_path)).missing


@pytest.mark.parametrize("text", ["", "many", "-5", "9" * 30, "\u0663", "1 2", "0x10"])
def test_nonsense_in_sysfs_counts_as_absent(tmp_path: Path, text: str) -> None:
    sysfs(tmp_path, text)
    assert find_epc(Host(tmp_path)).source == "none"


def test_a_section_as_a_dc2s_v3_reports_it() -> None:
    # 8 GiB at 0x1_4000_0000: EAX type 1, ECX property 1.
    registers = bytes.fromhex("01000040010000000100000002000000")
    assert epc_section_size(registers) == 8 << 30
    assert epc_section_size(bytes(16)) == 0
    # The reserved bits of the high halves do not count.
    assert epc_section_size(struct.pack("<4I", 1, 0, 0x1000, 0xFFF0_0000)) == 0x1000
