"""Builds the cluster's programs from Go modules, each once per state of its sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from testcluster.home import SOURCES, Home, usual_home
from testcluster.versions import FOLDER, chosen_version, full_version, minor_of, module_files

_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True)
class Program:
    """One program: the module folder that pins its version, and what `go build` is told."""

    name: str
    module: str
    package: str
    ldflags: str = "-s -w"
    modules: str = field(default="go.mod", repr=False)
    """The file, inside of `module`, that pins versions."""


def _kubernetes(modules: str) -> Program:
    # Without these the API server calls itself v0.0.0, and clients that look at versions go astray.
    version = full_version(FOLDER / modules)
    major, minor = minor_of(version).split(".")
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    settings = [f"-X {package}.{name}={value}" for package in _VERSION_PACKAGES for name, value in values.items()]
    return Program("kube", FOLDER.name, ".", " ".join(["-s -w", *settings]), modules)


def wanted() -> tuple[Program, ...]:
    """Every program that is built here; runc is Debian's."""
    containerd = "github.com/containerd/containerd/v2"
    return (
        _kubernetes(module_files()[chosen_version()]),
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        Program("containerd", "containerd", f"{containerd}/cmd/containerd", f"-s -w {_containerd_flags(containerd)}"),
        Program("containerd-shim-runc-v2", "containerd", f"{containerd}/cmd/containerd-shim-runc-v2"),
        Program("ctr", "containerd", f"{containerd}/cmd/ctr"),
        Program("pause", "pause", "."),
        Program("metrics-server", "metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server"),
    )


def _containerd_flags(package: str) -> str:
    required = (SOURCES / "modules" / "containerd" / "go.mod").read_text()
    version = next(line.split()[1] for line in required.splitlines() if line.strip().startswith(f"{package} v"))
    return f"-X {package}/version.Version={version}"


def missing(home: Home) -> list[Program]:
    """Those that are not there, or not of these sources."""
    return [program for program in wanted() if _mark(home, program) != _digest(program)]


def build(home: Home, program: Program) -> None:
    """Build one and mark it with the digest of its sources; one that the usual home has is copied from there."""
    target = home.programs / program.name
    home.programs.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    if _mark(usual_home(), program) == _digest(program):
        shutil.copy2(usual_home().programs / program.name, fresh)
    else:
        _compile(program, fresh)
    fresh.replace(target)
    _mark_path(home, program).write_text(_digest(program))


def _compile(program: Program, target: Path) -> None:
    options = ["-trimpath", "-modfile", program.modules, "-ldflags", program.ldflags, "-o", str(target)]
    subprocess.run(
        ["go", "build", *options, program.package],
        cwd=SOURCES / "modules" / program.module,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"},
        check=True,
    )


def adopt_runc(home: Home) -> None:
    """Put Debian's runc beside the others."""
    found = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin")
    if found is None:
        raise FileNotFoundError("runc")
    home.programs.mkdir(parents=True, exist_ok=True)
    link = home.programs / "runc"
    link.unlink(missing_ok=True)
    link.symlink_to(found)


def _digest(program: Program) -> str:
    digest = hashlib.sha256(repr(program).encode())
    folder = SOURCES / "modules" / program.module
    modules = folder / program.modules
    for source in sorted([*folder.glob("*.go"), *modules.parent.glob(f"{modules.stem}.*")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _mark_path(home: Home, program: Program) -> Path:
    return home.programs / f".{program.name}.sources"


def _mark(home: Home, program: Program) -> str | None:
    path = _mark_path(home, program)
    return path.read_text() if path.exists() and (home.programs / program.name).exists() else None
