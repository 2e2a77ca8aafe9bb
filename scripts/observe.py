"""Runs the tests of alerts, dashboards and units with Debian's Prometheus, which is downloaded into build/ once."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import debian
from pytest_child import ROOT, run_pytest

FOLDER = ROOT / "build" / "prometheus"
TESTS = (
    "tests/contract/test_alerts.py",
    "tests/contract/test_autoscaling_files.py",
    "tests/contract/test_dashboards.py",
    "tests/contract/test_systemd_units.py",
)


def prometheus(name: str) -> Path | None:
    """`prometheus` or `promtool`: of the PATH, else as it was downloaded; None if there is none."""
    found = shutil.which(name)
    unpacked = FOLDER / "usr" / "bin" / name
    return Path(found) if found else unpacked if unpacked.exists() else None


def main(arguments: list[str]) -> int:
    if prometheus("promtool") is None and (problem := debian.unpack(FOLDER, "prometheus")):
        print(f"observe: {problem}, or put promtool and prometheus into the PATH", file=sys.stderr)
        return 1
    environment = os.environ | {"CONFCOM_TEST_OBSERVE": "1"}
    return run_pytest(*TESTS, "--timeout", "900", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
