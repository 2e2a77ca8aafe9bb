"""How much EPC a host has, and on which NUMA node: from sysfs (Linux 5.17 and later), else from CPUID leaf 0x12.

CPUID is read from the kernel's file /dev/cpu/0/cpuid (module `cpuid`, root), because this project runs no machine code
of its own; it knows no NUMA nodes. A host that has neither has no EPC that we could count, and `missing` says why.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from confcom.devices.host import Host

NODES = "/sys/devices/system/node"
CPUID = "/dev/cpu/0/cpuid"
MIB = 1 << 20

_EPC_LEAF = 0x12
_FIRST_SECTION = 2
_MAX_SECTIONS = 8
"""As many as Linux uses."""
_IN_PLACE = 0xFFFF_F000
_HIGH = 0xF_FFFF
_NODE = re.compile(r"node([0-9]{1,4})")
_MAX_DIGITS = 19


@dataclass(frozen=True, slots=True)
class EpcSection:
    """EPC of one NUMA node, or of an unknown one (None). `size` in bytes."""

    numa_node: int | None
    size: int


@dataclass(frozen=True, slots=True)
class EpcSections:
    """All EPC of a host. `numa_nodes` counts the host's nodes, with EPC or without."""

    sections: tuple[EpcSection, ...]
    source: Literal["sysfs", "cpuid", "none"]
    numa_nodes: int = 1
    missing: str = ""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(section.size for section in self.sections)


def find_epc(host: Host) -> EpcSections:
    """Look in sysfs, then in CPUID."""
    nodes = sorted(int(match[1]) for name in host.names(NODES) if (match := _NODE.fullmatch(name)))
    found = [(node, _number(host.read(f"{NODES}/node{node}/x86/sgx_total_bytes"))) for node in nodes]
    count = max(1, len(nodes))
    if any(size is not None for _, size in found):
        sections = tuple(EpcSection(node, size) for node, size in found if size)
        missing = "" if sections else f"the kernel counts no EPC: every {NODES}/node*/x86/sgx_total_bytes is 0"
        return EpcSections(sections, "sysfs", count, missing)
    sizes = _cpuid_sections(host)
    if sizes:
        return EpcSections(tuple(EpcSection(None, size) for size in sizes), "cpuid", count)
    why = "not available" if sizes is None else "names no EPC section"
    return EpcSections((), "none", count, f"{NODES}/node*/x86/sgx_total_bytes is not there, and {CPUID} {why}")


def epc_section_size(registers: bytes) -> int:
    """Bytes of the EPC section that sub-leaf n ≥ 2 of CPUID leaf 0x12 describes, 0 where the list ends.

    `registers` are EAX, EBX, ECX, EDX, 16 bytes little-endian. Intel SDM volume 3D, CPUID leaf 12H.
    """
    eax, _, ecx, edx = struct.unpack("<4I", registers)
    if eax & 0xF != 1:
        return 0
    size: int = (ecx & _IN_PLACE) | ((edx & _HIGH) << 32)
    return size


def _cpuid_sections(host: Host) -> list[int] | None:
    sizes: list[int] = []
    for subleaf in range(_FIRST_SECTION, _FIRST_SECTION + _MAX_SECTIONS):
        registers = host.read_at(CPUID, 16, subleaf << 32 | _EPC_LEAF)
        if registers is None or len(registers) != 16:
            return sizes or None
        size = epc_section_size(registers)
        if not size:
            break
        sizes.append(size)
    return sizes


def _number(text: str | None) -> int | None:
    digits = "" if text is None else text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS else None
