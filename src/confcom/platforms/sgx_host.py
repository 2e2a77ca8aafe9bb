"""What a process needs of its host to be its own quoting platform (in-proc), and what of it is missing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

DEVICES = ("dev/sgx_enclave", "dev/sgx_provision")
"""Of the in-kernel driver. The second grants the provisioning key, which QE and PCE need."""

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


def obstacles_to_in_proc(host: Path = Path("/")) -> tuple[str, ...]:
    """Each missing thing as a clause that names it: devices and their permissions, Intel's quote library."""
    found = [_obstacle(host, device) for device in DEVICES]
    if not any((host / folder / QUOTE_LIBRARY).exists() for folder in LIBRARY_FOLDERS):
        found.append(f"{QUOTE_LIBRARY} is not installed")
    return tuple(clause for clause in found if clause)


def _obstacle(host: Path, device: str) -> str:
    try:
        # Opening is the kernel's own test: device cgroups and capabilities count, which access(2) does not ask.
        os.close(os.open(host / device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return f"/{device} does not exist"
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return f"no permission to open /{device}" + (" (group sgx_prv)" if "provision" in device else "")
        return f"/{device} cannot be opened: {error.strerror}"
    return ""
