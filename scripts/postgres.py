"""Run the tests of the stores on PostgreSQL, where CONFCOM_TEST_POSTGRES is the URL of one; else on one of its own.

That is Debian's package, installed here where this is root; it runs in a folder below /tmp on a port of 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pytest_child import run_pytest


def missing() -> str:
    """Install the server where it is missing; what still is, in a sentence."""
    if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb"):
        return ""
    if os.geteuid() or not shutil.which("apt-get"):
        return "install a PostgreSQL server (Debian: apt-get install postgresql), or set CONFCOM_TEST_POSTGRES to a URL"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
    failed = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode
    return f"{' '.join(command)} failed" if failed else ""


def main(arguments: list[str]) -> int:
    named = os.environ.get("CONFCOM_TEST_POSTGRES")
    if not named and (reason := missing()):
        sys.exit(f"postgres: {reason}")
    environment = os.environ | {"CONFCOM_TEST_POSTGRES": named or "start"}
    return run_pytest("-m", "postgres", "--timeout", "900", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
