"""A simulated SGX node: a folder that looks like a host with the EPC that was declared, for work without hardware.

The code for real hosts reads this folder as well. Its devices are ordinary files; the one for enclaves holds the
simulated machine, so enclaves in a container that was granted it run on this node's machine. A simulated enclave maps
that file, as a real one maps the device: that takes part in the counting of EPC, and costs no memory.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import resource
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from confcom.devices.host import Host
from confcom.devices.sgx_node import ENCLAVE_PATHS, MIB, PROVISION_PATHS
from confcom.errors import ConfigError

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
        f"sys/devices/system/node/node{number}/x86/sgx_total_bytes": f"{size}\n".encode()
        for number, size in enumerate(epc)
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
    for path in root.glob("sys/devices/system/node/node*/x86/sgx_total_bytes"):
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
