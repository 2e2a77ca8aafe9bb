"""Try the attestation service by its OpenAPI document with schemathesis: a thousand requests, and more with arguments.

schemathesis comes from requirements/api.txt. The service judges simulated evidence in this process; arguments go to
`schemathesis run`, such as --max-examples 500.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from locked import provide

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def main(arguments: list[str]) -> int:
    """Serve, run, and give schemathesis' exit code."""
    provide("api", "schemathesis")
    from confcom.services.runtime.process import configure_logging

    tests = import_module("running_attestation_service")
    configure_logging(pretty=False)
    rate = {"attest_per_minute": 1_000_000}
    with (
        tempfile.TemporaryDirectory() as folder,
        tests.running_attestation(Path(folder), tests.make_world(), **rate) as service,
    ):
        words = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{service.url}/openapi.json",
            "--header", f"Authorization: Bearer {tests.TOKEN}", "--phases", "coverage,fuzzing", "--max-examples", "20",
            # A schema cannot say which bytes are a quote.
            "--exclude-checks", "positive_data_acceptance", *arguments,
        ]  # fmt: skip
        environment = os.environ | {"NO_COLOR": "1"}
        return subprocess.run(words, cwd=folder, env=environment, check=False, timeout=1800).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
