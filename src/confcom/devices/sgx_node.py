"""What a node offers for SGX, found in one look or declared: the driver's devices, EPC, and the pool that it makes.

The in-kernel driver and DCAP 1.41 have /dev/sgx_enclave; DCAP 1.33 has /dev/sgx/enclave; udev links one to the other.
Sizes of EPC come from sysfs (Linux 5.17 and later), else from CPUID, read from the kernel's file /dev/cpu/0/cpuid
(module `cpuid`, root), which knows no NUMA nodes. `missing` says why a host has no EPC that could be counted.

The pool is the only place that turns bytes of EPC into units. Each unit's id is four characters of a fixed alphabet:
the NUMA node, then the unit's number there. So an id means the same after every restart, and the kubelet's books stay
right.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import resource
import secrets
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

from confcom.devices.host import DeviceFile, Host
from confcom.errors import ConfigError, PlatformUnavailable
from confcom.protocols.kubelet import MAX_MESSAGE, list_and_watch_size

ENCLAVE_PATHS = ("/dev/sgx_enclave", "/dev/sgx/enclave")
PROVISION_PATHS = ("/dev/sgx_provision", "/dev/sgx/provision")
LEGACY_PATH = "/dev/isgx"
DeviceKind: TypeAlias = Literal["enclave", "provision"]

_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)

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


@dataclass(frozen=True, slots=True)
class DriverDevice:
    """One device of the driver: `file` is the true one, `aliases` every path under which programs look for it."""

    file: DeviceFile
    aliases: tuple[str, ...]

    def describe(self) -> str:
        """Path, number, mode and owner, for a log."""
        number = "stand-in" if self.file.number is None else "{}:{}".format(*self.file.number)
        return f"{self.file.path} ({number}, mode {self.file.mode:04o}, uid {self.file.uid}, gid {self.file.gid})"


@dataclass(frozen=True, slots=True)
class SgxDriver:
    """What of the driver is there. `missing` says why enclaves cannot run, or is empty."""

    enclave: DriverDevice | None
    provision: DriverDevice | None
    kind: Literal["in-kernel", "dcap", "none"]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class CpuFlags:
    """Flags of the first processor in /proc/cpuinfo: each is set when CPU, BIOS and kernel allow the feature."""

    sgx: bool
    launch_control: bool


def find_driver(host: Host) -> SgxDriver:
    """Look for the devices of every known driver."""
    enclave, enclave_path = _find(host, ENCLAVE_PATHS)
    provision, _ = _find(host, PROVISION_PATHS)
    if enclave is None:
        return SgxDriver(None, provision, "none", _why_no_driver(host))
    return SgxDriver(enclave, provision, "in-kernel" if enclave_path == ENCLAVE_PATHS[0] else "dcap")


def find_cpu_flags(host: Host) -> CpuFlags | None:
    """None where /proc/cpuinfo cannot be read."""
    text = host.read("/proc/cpuinfo")
    match = None if text is None else _FLAGS.search(text)
    if match is None:
        return None
    flags = match[1].split()
    return CpuFlags("sgx" in flags, "sgx_lc" in flags)


def _find(host: Host, paths: tuple[str, ...]) -> tuple[DriverDevice | None, str]:
    for path in paths:
        found = host.device(path)
        if found is not None:
            # udev's link may lead either way; the name of the true device is that of its driver.
            return DriverDevice(found, paths), found.path
    return None, ""


def _why_no_driver(host: Host) -> str:
    absent = f"neither {ENCLAVE_PATHS[0]} nor {ENCLAVE_PATHS[1]} is a device"
    if host.device(LEGACY_PATH) is not None:
        return f"{absent}; {LEGACY_PATH} belongs to a driver without launch control, which is not served"
    flags = find_cpu_flags(host)
    if flags is None:
        return absent
    if not flags.sgx:
        return f"{absent}; the processor has no SGX, or the BIOS or the hypervisor keeps it off"
    if not flags.launch_control:
        return f"{absent}; the BIOS has locked launch control, so the kernel's driver stays off"
    return f"{absent}; the processor has SGX, but no driver is loaded (Linux 5.11 with CONFIG_X86_SGX, or DCAP's)"


@dataclass(frozen=True, slots=True)
class SgxNode:
    """EPC and driver of one host at one moment."""

    epc: EpcSections
    driver: SgxDriver

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Each reason why this node cannot run enclaves, as a clause; empty when it can."""
        return tuple(clause for clause in (self.driver.missing, self.epc.missing) if clause)

    def why_missing(self, kind: DeviceKind) -> str:
        """Why a device of the driver cannot be had now; empty when it can."""
        if kind == "enclave" or self.driver.provision is not None:
            return self.driver.missing if kind == "enclave" else ""
        return self.driver.missing or f"neither {PROVISION_PATHS[0]} nor {PROVISION_PATHS[1]} is a device"

    def device(self, kind: DeviceKind) -> DriverDevice:
        """A device of the driver; `PlatformUnavailable` when it is not there now."""
        found = self.driver.enclave if kind == "enclave" else self.driver.provision
        if found is None:
            raise PlatformUnavailable(f"no {kind} device: {self.why_missing(kind)}")
        return found


def find_sgx(host: Host) -> SgxNode:
    """Look at the host. It costs a few reads, so that it can be done every few seconds."""
    return SgxNode(find_epc(host), find_driver(host))


# The pool of units, and how it is published.

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
ID_LENGTH = 4
MAX_UNITS_PER_NODE = 64**3
_NOWHERE = 63
"""The first character's value for EPC of an unknown node; nodes from 63 on count as unknown."""


@dataclass(frozen=True, slots=True)
class PoolSection:
    """EPC of one NUMA node: what is there, and what of it may be requested, in MiB."""

    numa_node: int | None
    true_mib: int
    units: int

    @property
    def ids(self) -> tuple[str, ...]:
        """One id per unit, in order."""
        if self.units > MAX_UNITS_PER_NODE:
            raise ConfigError(
                f"{self.units} units of one NUMA node are more than ids of {ID_LENGTH} characters can name"
            )
        head = ALPHABET[_NOWHERE if self.numa_node is None else self.numa_node]
        return tuple(
            head + ALPHABET[number >> 12] + ALPHABET[number >> 6 & 63] + ALPHABET[number & 63]
            for number in range(self.units)
        )


@dataclass(frozen=True, slots=True)
class EpcPool:
    """All sections. `reserve_mib` was subtracted before the overcommit ratio was applied."""

    sections: tuple[PoolSection, ...]
    reserve_mib: int = 0
    overcommit: float = 1.0

    @property
    def true_mib(self) -> int:
        """MiB that the node has."""
        return sum(section.true_mib for section in self.sections)

    @property
    def units(self) -> int:
        """MiB that may be requested."""
        return sum(section.units for section in self.sections)

    def without(self, held: Mapping[int | None, int]) -> EpcPool:
        """The pool less the units per NUMA node that pods hold by another publisher."""
        left = [replace(one, units=max(0, one.units - held.get(one.numa_node, 0))) for one in self.sections]
        return replace(self, sections=tuple(left))


def is_unit(name: str) -> bool:
    """Whether a device's id is one of a unit; those of other plugins have other forms."""
    return len(name) == ID_LENGTH and set(name) <= set(ALPHABET)


def numa_node_of(unit: str) -> int | None:
    """The NUMA node that a unit's id names; None for EPC of an unknown node."""
    number = ALPHABET.index(unit[:1])
    return None if number == _NOWHERE else number


def plan_pool(found: Iterable[EpcSection], *, reserve_mib: int = 0, overcommit: float = 1.0) -> EpcPool:
    """Take the reserve from the first node that has it, then the next; the rest times the ratio, rounded down."""
    per_node: Counter[int | None] = Counter()
    for section in found:
        known = section.numa_node is not None and section.numa_node < _NOWHERE
        per_node[section.numa_node if known else None] += section.size
    ratio = Fraction(str(overcommit))
    sections, owed = [], reserve_mib
    for node, size in per_node.items():
        true_mib = size // MIB
        held = min(owed, true_mib)
        owed -= held
        sections.append(PoolSection(node, true_mib, int((true_mib - held) * ratio)))
    return EpcPool(tuple(sections), reserve_mib, overcommit)


def prefer_one_node(available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
    """Which `size` of the available ids a container should get: from one NUMA node if one has enough.

    Of several such nodes the one that `must_include` is from, then the fullest, which leaves the large holes for large
    requests. If none has enough, as few nodes as possible. Fewer than `size` come back only if there are fewer.
    """
    chosen = dict.fromkeys(must_include)
    free: dict[str, list[str]] = {}
    for unit in sorted(set(available) - chosen.keys()):
        free.setdefault(unit[:1], []).append(unit)
    started = {unit[:1] for unit in chosen}
    while len(chosen) < size and free:
        missing = size - len(chosen)
        node = min(free, key=lambda name: _cost(name in started, len(free[name]), missing, name))
        chosen |= dict.fromkeys(free.pop(node)[:missing])
    return tuple(chosen)


def _cost(started: bool, free: int, missing: int, name: str) -> tuple[bool, bool, int, str]:
    enough = free >= missing
    return (not enough, not started, free if enough else -free, name)


DEFAULT_UNIT_LIMIT = 3072
"""Devices of 1 MiB up to which `auto` publishes devices.

Measured on kubelet 1.36 (docs/explanation/epc.md): after its restart it spends 70 to 120 ns per device and allocated
device before it admits pods again. 3072 units, all in use, stay under 2 s on a busy machine of 2 cores; 16384 take half
a minute. The limit of a message comes much later.
"""
MAX_UNIT_LIMIT = 180_000
"""Units of which a message stays under the kubelet's limit, NUMA nodes included."""

PublisherName: TypeAlias = Literal["auto", "devices", "node-status", "dra"]


@dataclass(frozen=True, slots=True)
class PublisherChoice:
    """How EPC is published, and why, as a clause for the log."""

    name: Literal["devices", "node-status", "dra"]
    reason: str


def choose_publisher(
    pool: EpcPool, *, wanted: PublisherName = "auto", unit_limit: int = DEFAULT_UNIT_LIMIT, topology: bool = False
) -> PublisherChoice:
    """Resolve `auto` by the size; `ConfigError` if devices were asked for and the kubelet could not take them."""
    size = list_and_watch_size(pool.units, ID_LENGTH, topology=topology)
    match wanted:
        case "node-status" | "dra":
            return PublisherChoice(wanted, "it was asked for by name")
        case "devices" if size > MAX_MESSAGE:
            raise ConfigError(
                f"{pool.units} devices of 1 MiB make a message of {size} bytes, and the kubelet takes {MAX_MESSAGE}",
                advice="Choose publisher node-status (or auto) for a node of this size.",
            )
        case "devices":
            return PublisherChoice("devices", f"it was asked for by name; {_figures(pool.units, size)}")
        case "auto" if pool.units <= unit_limit:
            return PublisherChoice("devices", f"{_figures(pool.units, size)}, within the limit of {unit_limit} units")
        case _:
            return PublisherChoice("node-status", f"{pool.units} units are more than the limit of {unit_limit}")


def _figures(units: int, size: int) -> str:
    return f"{units} devices of 1 MiB, a message of {size} bytes"


# A simulated node: a folder that looks like a host with the EPC that was declared, for work without hardware.
#
# The code for real hosts reads this folder as well. Its devices are ordinary files; the one for enclaves holds the
# simulated machine, so enclaves in a container that was granted it run on this node's machine. A simulated enclave maps
# that file, as a real one maps the device: that takes part in the counting of EPC, and costs no memory.

MAX_NUMA_NODES = 64
_UNITS = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"([0-9]{1,15})(?:([KMGT])(?:i|iB)?)?")


def parse_epc_sizes(text: str) -> tuple[int, ...]:
    """Bytes per NUMA node from `168Mi` or `64Gi,64Gi`; also plain bytes. `ConfigError` says what is wrong."""
    sizes = []
    for word in text.split(","):
        match = _SIZE.fullmatch(word.strip())
        if match is None:
            raise ConfigError(f"{word.strip()!r} is no size of EPC", advice="Write for example 168Mi, or 64Gi,64Gi.")
        sizes.append(int(match[1]) << _UNITS[match[2]] if match[2] else int(match[1]))
    if len(sizes) > MAX_NUMA_NODES:
        raise ConfigError(f"{len(sizes)} NUMA nodes are more than {MAX_NUMA_NODES}")
    if sum(sizes) < MIB:
        raise ConfigError(f"{text} is less than 1 MiB of EPC")
    return tuple(sizes)


def declare_node(root: Path, epc: tuple[int, ...], machine: bytes) -> Host:
    """Make the folder, or bring it up to date. `epc` has bytes per NUMA node, `machine` the machine file's content."""
    files: dict[str, bytes] = {
        f"{NODES[1:]}/node{number}/x86/sgx_total_bytes": f"{size}\n".encode() for number, size in enumerate(epc)
    }
    files["proc/cpuinfo"] = b"processor\t: 0\nmodel name\t: simulated\nflags\t\t: sgx sgx_lc\n"
    files[ENCLAVE_PATHS[0].lstrip("/")] = machine
    files[PROVISION_PATHS[0].lstrip("/")] = b"simulated provisioning device\n"
    try:
        _forget_nodes(root, len(epc))
        _write(root, files)
    except OSError as error:
        raise ConfigError(f"cannot make the simulated node at {root}: {error.strerror}") from error
    return Host(root.absolute(), stand_ins=True)


def _forget_nodes(root: Path, kept: int) -> None:
    for path in root.glob(f"{NODES[1:]}/node*/x86/sgx_total_bytes"):
        number = path.parent.parent.name.removeprefix("node")
        if number.isdigit() and int(number) >= kept:
            path.unlink()
            path.parent.rmdir()
            path.parent.parent.rmdir()


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        if _reads(path, content):
            continue  # the same file stays: what containers have mapped of it is identified by its inode
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one step: containers may hold the present file, and must not see half of the next.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.write_bytes(content)
        draft.chmod(0o644)
        draft.rename(path)


def _reads(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False


MAX_MAPPINGS = 60_000
"""Linux lets a process have 65530."""
_SPARE = 64
"""Descriptors left for everything else."""


def map_enclave_memory(device: Path, size: int) -> ExitStack:
    """Map at least `size` bytes of `device`; closing what comes back gives them up.

    Python maps no more of an ordinary file than it has, so it is mapped over and over.
    """
    held = ExitStack()
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        length = os.fstat(descriptor).st_size
        count = math.ceil(size / max(mmap.PAGESIZE, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE))
        if count > MAX_MAPPINGS:
            raise ConfigError(f"{size} bytes of {device} are more than {MAX_MAPPINGS} mappings of it can hold")
        _allow_descriptors(count + _SPARE)
        for _ in range(count):
            held.enter_context(mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        held.close()
        raise ConfigError(
            f"cannot map {size} bytes of {device}: {error}",
            advice="On a simulated node, a container that requests EPC has the device at /dev/sgx_enclave.",
        ) from error
    return held


def _allow_descriptors(count: int) -> None:
    # Each mapping keeps one of its own.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
