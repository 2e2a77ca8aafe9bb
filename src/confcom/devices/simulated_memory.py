"""Enclave memory of a simulated enclave: addresses mapped from the device's stand-in, as a real one maps the device.

It takes part in the counting of EPC and nothing else. Nothing is read or written there, so it costs no memory.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
from contextlib import ExitStack
from pathlib import Path

from confcom.errors import ConfigError

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
