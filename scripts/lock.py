"""Resolve the requirements: exact versions with hashes, for every platform.

dev.txt holds every extra and the dev group. run.txt and build.txt, a part of it at the same versions, are what the
program runs with and what installs it: in `./dev demo` and in the container image. browser.txt, api.txt, site.txt and
release.txt are what `./dev browser`, `./dev api`, `./dev site` and `./dev release` add.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
DEV = FOLDER / "dev.txt"
RUN_EXTRAS = ("node", "services", "kube", "cli", "postgres")
BUILD_TOOLS = "hatchling\neditables"


def resolve(target: Path, *words: str, requirements: str | None = None) -> int:
    """Resolve the requirements that `words` name into one file; returns the resolver's exit code."""
    command = [
        "uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes",
        "--no-emit-index-url", "--no-header", "--no-annotate", "--system-certs",
        *words, "--output-file", str(target),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False, input=requirements, text=True).returncode


def main(arguments: list[str]) -> int:
    """Resolve all; arguments go to the resolver of dev.txt, which decides the versions."""
    extras = [word for extra in RUN_EXTRAS for word in ("--extra", extra)]
    same = ["--constraint", str(DEV.relative_to(ROOT))]
    return (
        resolve(DEV, "--all-extras", "--group", "dev", *arguments, "pyproject.toml")
        or resolve(FOLDER / "run.txt", *extras, *same, "pyproject.toml")
        or resolve(FOLDER / "build.txt", *same, "-", requirements=BUILD_TOOLS)
        or resolve(FOLDER / "browser.txt", "--group", "browser", *same)
        or resolve(FOLDER / "interop.txt", "--group", "interop", *same)
        or resolve(FOLDER / "api.txt", "--group", "api", *same)
        or resolve(FOLDER / "site.txt", "--group", "site", *same)
        or resolve(FOLDER / "release.txt", "--group", "release", *same)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
