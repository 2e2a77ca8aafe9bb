"""Run the tests against programs that others wrote, built from their own sources (needs cargo) or from the registry.

The TLS libraries of requirements/interop.txt are installed here, if they are not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    if not all(map(importlib.util.find_spec, ("aiohttp", "httpx", "OpenSSL", "uvloop", "websockets"))):
        locked = ["--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "requirements" / "interop.txt")]
        if subprocess.run([sys.executable, "-m", "pip", "install", "-q", *locked], check=False).returncode:
            sys.exit("interop: the libraries of requirements/interop.txt cannot be installed")
    environment = os.environ | {"CONFCOM_INTEROP": "1"}
    command = [sys.executable, "-m", "pytest", "tests/interop", "--timeout", "900", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
