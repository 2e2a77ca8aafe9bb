"""Run the tests of the stores on PostgreSQL, where CONFCOM_TEST_POSTGRES is the URL of one; else on one of its own.

That is Debian's package, installed here where this is root; it runs in a folder below /tmp on a port of 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import debian
from pytest_child import run_pytest


def missing() -> str:
    """Install the server where it is missing; what still is, in a sentence."""
    if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb"):
        return ""
    reason = debian.install("postgresql")
    return reason and f"{reason}, or set CONFCOM_TEST_POSTGRES to a URL"


def main(arguments: list[str]) -> int:
    named = os.environ.get("CONFCOM_TEST_POSTGRES")
    if not named and (reason := missing()):
        sys.exit(f"postgres: {reason}")
    environment = os.environ | {"CONFCOM_TEST_POSTGRES": named or "start"}
    return run_pytest("-m", "postgres", "--timeout", "900", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
