"""Sets the project up in `.venv` and runs one of its tasks; needs nothing but Python 3.11 and its `venv` module.

Every package comes from `requirements/dev.txt`, which pins versions and hashes. The set-up is redone only when
that file, `pyproject.toml` or the Python that made it changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
LOCK = ROOT / "requirements" / "dev.txt"

TASKS: dict[str, tuple[str, list[list[str]]]] = {
    "demo": ("the whole system on this machine, simulated platform", [["confcom", "demo"]]),
    "test": (
        "the tests (further words go to pytest)",
        [["python", "-m", "pytest", "-n", "2", "--dist", "worksteal"]],
    ),
    "lint": (
        "style, unused code, formatting",
        [["ruff", "check", "."], ["ruff", "format", "--check", "."]],
    ),
    "format": (
        "rewrite the sources in the house style",
        [["ruff", "check", "--fix", "."], ["ruff", "format", "."]],
    ),
    "types": ("strict type check", [["mypy"]]),
    "imports": ("the import contracts", [["lint-imports"]]),
    "generate": ("write generated files anew", [["python", "scripts/generate.py"]]),
    "fuzz": ("bounded fuzzing of every parser", [["python", "scripts/fuzz.py"]]),
    "bench": ("the benchmarks, each beside its limit or peer", [["python", "-m", "benchmarks"]]),
    "interop": ("clients that others wrote, built from their sources", [["python", "scripts/interop.py"]]),
    "cluster": (
        "a real Kubernetes here: build, up, down, wipe, status, check",
        [["python", "scripts/cluster.py"]],
    ),
    "image": ("the container image, built without a registry", [["python", "scripts/image.py"]]),
    "e2e": ("the end-to-end tests on a real Kubernetes", [["python", "scripts/e2e.py"]]),
    "lock": ("resolve the requirements anew", [["python", "scripts/lock.py"]]),
    "run": ("any command inside the environment", [[]]),
}


def fail(message: str) -> None:
    sys.exit(f"dev: {message}")


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def set_up() -> None:
    """Make `.venv` match the lock file and the project; does nothing when it already does."""
    packages = digest(sys.version.encode(), sys.prefix.encode(), LOCK.read_bytes())
    project = digest(packages.encode(), (ROOT / "pyproject.toml").read_bytes())
    pip = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    if stamp("packages") != packages:
        print("dev: setting up .venv (once, about a minute)", file=sys.stderr, flush=True)
        try:
            venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(VENV)
        except (subprocess.CalledProcessError, ImportError) as error:
            fail(f"cannot make a virtual environment ({error}); install Python's venv module (Debian: python3-venv)")
        step([*pip, "install", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)])
        stamp("packages", packages)
    if stamp("project") != project:
        step([*pip, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
        stamp("project", project)


def step(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        fail(f"this step failed: {' '.join(command)}")


def stamp(name: str, value: str | None = None) -> str:
    """Read, or with a value write, the mark of what `.venv` holds."""
    path = VENV / f".confcom-{name}"
    if value is not None:
        path.write_text(value)
    return path.read_text() if path.exists() else ""


def usage() -> str:
    lines = ["usage: ./dev TASK [ARGUMENT…]", ""]
    lines += [f"  {name:10} {what}" for name, (what, _) in TASKS.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in TASKS:
        print(usage(), file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    set_up()
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(VENV),
    }
    commands = TASKS[arguments[0]][1]
    for index, command in enumerate(commands):
        extra = arguments[1:] if index == len(commands) - 1 else []
        words = [*command, *extra]
        if not words:
            fail("run needs a command: ./dev run confcom --help")
        program = BIN / words[0]
        code = subprocess.run(
            [str(program) if program.exists() else words[0], *words[1:]],
            cwd=ROOT,
            env=environment,
            check=False,
        ).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
