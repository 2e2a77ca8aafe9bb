"""Which Kubernetes: a file of modules pins each version that the tests can run on, with all that it is made of."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / "tests" / "e2e" / "cluster" / "modules" / "kubernetes"
"""One source for all versions; `go.mod` pins the usual one, `versions/MINOR.mod` each other."""


def module_files() -> dict[str, str]:
    """Minor version to the file, inside of `FOLDER`, that pins it; the usual one first."""
    others = sorted((FOLDER / "versions").glob("*.mod"), key=lambda path: int(path.stem.split(".")[1]))
    files = [FOLDER / "go.mod", *others]
    return {minor_of(full_version(path)): str(path.relative_to(FOLDER)) for path in files}


def usual_version() -> str:
    """The minor version that is used where none is named."""
    return next(iter(module_files()))


def chosen_version() -> str:
    """The minor version that $KUBE_VERSION names, with its patch or without; ends the program where nothing pins it."""
    files = module_files()
    wanted = (os.environ.get("KUBE_VERSION") or usual_version()).removeprefix("v")
    found = minor_of(wanted)
    if found not in files or wanted not in (found, full_version(FOLDER / files[found])):
        there = ", ".join(full_version(FOLDER / path) for path in files.values())
        sys.exit(f"cluster: Kubernetes {wanted} is not among the versions that are pinned here: {there}")
    return found


def full_version(path: Path) -> str:
    """Major, minor and patch of the Kubernetes that a file of modules requires."""
    lines = (line.removeprefix("require").split() for line in path.read_text().splitlines())
    return next(words[1].removeprefix("v") for words in lines if words[:1] == ["k8s.io/kubernetes"])


def minor_of(version: str) -> str:
    """1.31 for 1.31.14."""
    return ".".join(version.split(".")[:2])
