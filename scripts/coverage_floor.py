"""Measures what the unit and property tests cover of `src`, line by line, and holds the floor of `pyproject.toml`.

A test that fails is shown and does not decide: that is for `./dev test`. Further words go to pytest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/unit", "tests/property")


def coverage(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, check=False).returncode


def main(words: list[str]) -> int:
    """0 at the floor or above, 2 below it."""
    coverage("erase")
    coverage("run", "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *TESTS, *words)
    return coverage("combine", "--quiet") or coverage("report", "--skip-covered")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
