"""The Helm program: that of the machine, else one built once per checkout from the Go module in tests/interop."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm"
MODULE = ROOT / "tests" / "interop" / "helm"
BUILT = ROOT / "build" / "helm"


def helm_program(*, required: bool) -> str:
    """$HELM, else `helm` of the PATH, else what was built here; the first build takes minutes, others seconds.

    Where none can be had, the test fails if Helm is `required`, and else is skipped.
    """
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    problem = "" if BUILT.exists() else _build()
    if problem and required:
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    return str(BUILT)


def _build() -> str:
    """What prevents it, or an empty word."""
    go = shutil.which("go")
    if go is None:
        return "there is no Helm here, and no Go to build it with"
    # By a name of its own first: several tests may build it at the same time.
    made = BUILT.with_name(f"helm.{os.getpid()}")
    command = [go, "build", "-mod=readonly", "-trimpath", "-o", str(made), "helm.sh/helm/v3/cmd/helm"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    built = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
    if built.returncode:
        return f"Helm cannot be built: {built.stderr}"
    made.rename(BUILT)
    return ""
