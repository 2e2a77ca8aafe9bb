"""pytest as a child that ends in order on Ctrl-C; what every task that runs tests after preparations has in common."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_pytest(*words: str, environment: Mapping[str, str] = os.environ) -> int:
    """The exit code of pytest in the checkout.

    A terminal sends Ctrl-C to both. `subprocess.run` would kill pytest a quarter of a second later, before fixtures
    have stopped the servers that they started.
    """
    with subprocess.Popen([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment) as process:
        while True:
            with suppress(KeyboardInterrupt):
                return process.wait()
