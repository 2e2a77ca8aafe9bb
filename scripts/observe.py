"""Runs the tests of alerts, dashboards and units with Debian's Prometheus, which is downloaded into build/ once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def download() -> str:
    """Unpack Debian's package, which needs no root; returns what prevents it, or an empty word."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "there is no apt-get here: put promtool and prometheus of Prometheus 2.42 or later into the PATH"
    FOLDER.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "prometheus"], cwd=FOLDER, check=False)
    package = next(FOLDER.glob("prometheus_*.deb"), None)
    if package is None:
        return "apt-get has no package prometheus: run apt-get update"
    subprocess.run(["dpkg-deb", "-x", str(package), str(FOLDER)], check=True)
    return ""


def main(arguments: list[str]) -> int:
    if prometheus("promtool") is None and (problem := download()):
        print(f"observe: {problem}", file=sys.stderr)
        return 1
    environment = os.environ | {"CONFCOM_TEST_OBSERVE": "1"}
    return run_pytest(*TESTS, "--timeout", "900", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
