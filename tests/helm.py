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


def helm_program(*, build: bool) -> str:
    """$HELM, else `helm` of the PATH, else what was built here. `build`: build it now; the first time takes minutes."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    if not BUILT.exists():
        if not build:
            pytest.skip("there is no Helm here: set $HELM, or run ./dev interop or ./dev e2e, which build it")
        _build()
    return str(BUILT)


def _build() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Helm here, and no Go to build it with")
    # By a name of its own first: several tests may build it at the same time.
    made = BUILT.with_name(f"helm.{os.getpid()}")
    command = [go, "build", "-mod=readonly", "-trimpath", "-o", str(made), "helm.sh/helm/v3/cmd/helm"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    built = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    made.rename(BUILT)
