"""Run the tests against clients that others wrote, built from their own sources (needs cargo)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    environment = os.environ | {"CONFCOM_INTEROP": "1"}
    command = [sys.executable, "-m", "pytest", "tests/interop", "--timeout", "900", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
