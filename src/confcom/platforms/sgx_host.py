"""What a process needs of its host to be its own quoting platform (in-proc), and what of it is missing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

ENCLAVE_DEVICES = ("dev/sgx_enclave", "dev/sgx/enclave")
"""Creates enclaves. The second name is that of Intel's driver up to 1.33, and a link by udev's rules since."""
PROVISION_DEVICES = ("dev/sgx_provision", "dev/sgx/provision")
"""Grants the provisioning key, which QE and PCE need."""

DEVICES_ADVICE = (
    "Load the SGX driver. If its devices get other numbers, restart this container, which keeps the old ones; in a "
    "cluster the liveness probe at /healthz does."
)

QUOTE_LIBRARY = "libsgx_dcap_ql.so.1"

LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "opt/intel/sgxsdk/lib64",
)
"""Where distributions, images and Intel's packages put it."""

_SCARCITY = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR))
"""Of descriptors, memory or time: they say nothing of the device."""


def obstacles_to_in_proc(host: Path = Path("/")) -> tuple[str, ...]:
    """Each missing thing as a clause that names it: devices and their permissions, Intel's quote library."""
    found = list(device_obstacles(host))
    if find_library(host, QUOTE_LIBRARY) is None:
        found.append(f"{QUOTE_LIBRARY} is not installed")
    return tuple(found)


def device_obstacles(host: Path = Path("/")) -> tuple[str, ...]:
    """The same for the devices alone."""
    found = (device_obstacle(host, names) for names in (ENCLAVE_DEVICES, PROVISION_DEVICES))
    return tuple(clause for clause in found if clause)


def find_library(host: Path, name: str) -> Path | None:
    """Where a library is among the usual folders; the dynamic linker may know others."""
    paths = (host / folder / name for folder in LIBRARY_FOLDERS)
    return next((path for path in paths if path.exists()), None)


def present_device(host: Path, names: tuple[str, ...]) -> str | None:
    """The first of these names at which something stands."""
    return next((name for name in names if os.path.lexists(host / name)), None)


def device_obstacle(host: Path, names: tuple[str, ...]) -> str:
    """Why this process cannot open a device that has one of these names; empty when it can."""
    name = present_device(host, names)
    if name is None:
        return f"/{names[0]} does not exist"
    try:
        # Opening is the kernel's own test: device cgroups and capabilities count, which access(2) does not ask.
        os.close(os.open(host / name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return f"/{name} is a link to nothing"
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return f"no permission to open /{name}" + (" (group sgx_prv)" if "provision" in name else "")
        if error.errno in {errno.ENXIO, errno.ENODEV}:
            return f"/{name} cannot be opened: {error.strerror}: the SGX driver was unloaded or replaced"
        return "" if error.errno in _SCARCITY else f"/{name} cannot be opened: {error.strerror}"
    return ""
