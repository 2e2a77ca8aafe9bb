"""Resolve every extra and the dev group into requirements/dev.txt: exact versions with hashes, for every platform."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "requirements" / "dev.txt"


def main(arguments: list[str]) -> int:
    command = [
        "uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes",
        "--no-emit-index-url", "--no-header", "--no-annotate", "--system-certs",
        "--all-extras", "--group", "dev", *arguments,
        "pyproject.toml", "--output-file", str(TARGET),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
