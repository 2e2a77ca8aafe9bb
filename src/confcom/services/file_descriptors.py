"""How many more files this process may open."""

from __future__ import annotations

import resource
from pathlib import Path


def available_descriptors() -> int:
    """The soft limit of open files less those that are open; the limit alone where /proc cannot tell."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        used = 3
    return (1 << 20 if soft == resource.RLIM_INFINITY else soft) - used
