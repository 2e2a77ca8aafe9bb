"""What one task needs beside the development tools: the packages of a lock file of its own in requirements/."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def provide(name: str, *modules: str) -> None:
    """Install requirements/NAME.txt unless these modules are there; ends the program where that fails."""
    if all(map(importlib.util.find_spec, modules)):
        return
    lock = REQUIREMENTS / f"{name}.txt"
    pinned = ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", *pinned], check=False).returncode:
        sys.exit(f"{name}: the packages of {lock} cannot be installed")
