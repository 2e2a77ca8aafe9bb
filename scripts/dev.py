"""Sets the project up in `.venv` and runs one of its tasks; needs nothing but Python 3.11 and its `venv` module.

`requirements/run.txt` and `build.txt` are what the program needs, `dev.txt` holds the development tools too; all pin
versions and hashes. A task installs only what it needs. The set-up is redone when one of these files, `pyproject.toml`
or the Python changes, or when it was interrupted; a second `./dev` waits for the first one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
LOCK = ROOT / ".venv.lock"
REQUIREMENTS = ROOT / "requirements"
RUN_LOCKS = [REQUIREMENTS / "run.txt", REQUIREMENTS / "build.txt"]
DEV_LOCK = REQUIREMENTS / "dev.txt"
PROGRESS_SECONDS = 5.0
"""Between two lines about one step, where the output is no terminal."""

PYTEST = ["python", "-m", "pytest", "-n", "2", "--dist", "worksteal"]
LINT = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
TASKS: dict[str, tuple[str, list[list[str]]]] = {
    "demo": ("the whole system on this machine, simulated platform", [["confcom", "demo"]]),
    "test": ("all tests (further words go to pytest)", [PYTEST]),
    "unit": ("the unit tests alone (further words go to pytest)", [[*PYTEST, "tests/unit"]]),
    "check": (
        "lint, types, imports, and the unit tests of what changed",
        [*LINT, ["mypy"], ["lint-imports"], ["python", "scripts/changed_tests.py"]],
    ),
    "lint": ("style, unused code, formatting", LINT),
    "format": ("rewrite the sources in the house style", [["ruff", "check", "--fix", "."], ["ruff", "format", "."]]),
    "types": ("strict type check", [["mypy"]]),
    "imports": ("the import contracts", [["lint-imports"]]),
    "coverage": ("the unit and property tests' coverage, and its floor", [["python", "scripts/coverage_floor.py"]]),
    "generate": ("write the generated files", [["python", "scripts/generate.py"]]),
    "figures": ("sizes of modules, and modules on the five walks", [["python", "scripts/figures.py"]]),
    "fuzz": ("bounded fuzzing of every parser", [["python", "scripts/fuzz.py"]]),
    "bench": ("the benchmarks, each beside its limit or peer", [["python", "-m", "benchmarks"]]),
    "soak": (
        "the memory of the attestation service during a million calls",
        [["python", "-m", "benchmarks.attestation", "--requests", "1000000"]],
    ),
    "interop": ("clients that others wrote, built from their sources", [["python", "scripts/interop.py"]]),
    "observe": ("alerts, dashboards and systemd units, with Prometheus", [["python", "scripts/observe.py"]]),
    "api": ("the attestation service against its OpenAPI document", [["python", "scripts/api_document.py"]]),
    "site": ("the documentation site, built and checked", [["python", "scripts/documentation_site.py"]]),
    "postgres": ("the stores of the services on PostgreSQL", [["python", "scripts/postgres.py"]]),
    "lighthouse": ("scores and weight of the site's pages", [["python", "scripts/lighthouse.py"]]),
    "browser": ("the pages in a headless Chromium", [["python", "scripts/browser.py"]]),
    "cluster": ("a real Kubernetes here: build, up, down, wipe, status, check", [["python", "scripts/cluster.py"]]),
    "image": ("the container image, built without a registry", [["python", "scripts/image.py"]]),
    "e2e": ("the end-to-end tests on a real Kubernetes", [["python", "scripts/e2e.py"]]),
    "lock": ("resolve the requirements", [["python", "scripts/lock.py"]]),
    "release": ("everything that is published, made of a tag", [["python", "scripts/release.py"]]),
    "publish": ("check and upload what release made", [["python", "scripts/publish.py"]]),
    "run": ("any command inside the environment", [[]]),
}
WITHOUT_TOOLS = (["demo"], ["run", "confcom"], ["run", "bash"])
"""What a user runs; everything else needs the development tools."""


def fail(message: str, code: int = 1) -> NoReturn:
    say(message)
    sys.exit(code)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def set_up(*, tools: bool) -> None:
    """Make `.venv` match the lock files and the project; does nothing when it already does."""
    here = [sys.version.encode(), sys.base_prefix.encode(), str(ROOT).encode()]
    base = digest(*here, *(path.read_bytes() for path in [*RUN_LOCKS, DEV_LOCK]))
    project = digest(base.encode(), (ROOT / "pyproject.toml").read_bytes())
    wanted = {"run": base, "project": project} | ({"dev": base} if tools else {})

    def matches() -> bool:
        return all(mark(name) == value for name, value in wanted.items())

    if matches():
        return
    with alone() as lock:
        if matches():
            return
        started = time.monotonic()
        say(f"setting up .venv {'for development' if tools else 'to run confcom'} (once)")
        if mark("run") != base:
            make_environment(lock)
            with marked("run", base):
                install("packages to run", lock, *pinned(RUN_LOCKS))
        if tools and mark("dev") != base:
            with marked("run", base), marked("dev", base):
                install("development tools", lock, *pinned([DEV_LOCK]))
        with marked("run", base), marked("project", project):
            install("confcom itself", lock, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        say(f"set up in {time.monotonic() - started:.0f} s")


@contextmanager
def alone() -> Iterator[int]:
    """Wait until no other `./dev` sets up; the lock's file descriptor.

    The programs that a step starts inherit it: where this process is killed, the lock lasts until they have ended.
    """
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./dev that sets up .venv")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def make_environment(lock: int) -> None:
    """An empty environment with pip."""
    missing = "install Python's venv module (Debian: python3-venv)"
    try:
        venv.EnvBuilder(with_pip=False, clear=True, symlinks=True).create(VENV)
    except (subprocess.CalledProcessError, ImportError, OSError) as error:
        fail(f"cannot make a virtual environment ({error}); {missing}")
    step("virtual environment", [str(BIN / "python"), "-m", "ensurepip", "--default-pip"], lock, advice=f"; {missing}")


def pinned(locks: list[Path]) -> list[str]:
    files = [word for lock in locks for word in ("-r", str(lock))]
    return ["--no-compile", "--require-hashes", "--only-binary", ":all:", *files]


def install(what: str, lock: int, *words: str) -> None:
    pip = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    locks = [Path(word) for word in words if word.endswith(".txt")]
    total = sum(len(re.findall(r"^[\w.-]+==", path.read_text(), re.MULTILINE)) for path in locks)
    index = "; packages come from the index that pip is set up for: check the network, the proxy and `pip config list`"
    step(what, [*pip, *words], lock, total, advice=index)


def step(what: str, command: list[str], lock: int, total: int = 0, *, advice: str = "") -> None:
    """Run one step of the set-up and show how far it is; `total` is the number of packages that pip names."""
    terminal = sys.stderr.isatty()
    started = shown = time.monotonic()
    lines: list[str] = []
    done, doing = 0, ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", pass_fds=(lock,)
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            done += line.startswith(("Collecting ", "Requirement already satisfied", "Ignoring "))
            doing = ", installing" if line.startswith("Installing collected") else doing
            now = time.monotonic()
            if total and (terminal or now - shown > PROGRESS_SECONDS):
                shown = now
                show(f"  {what}: {done} of {total}{doing}", terminal)
    if process.returncode:
        print("".join(lines[-30:]), file=sys.stderr)
        fail(f"this step failed: {' '.join(command)}{advice}")
    show(f"  {what}: {time.monotonic() - started:.0f} s", terminal)
    if terminal:
        print(file=sys.stderr)


def show(line: str, terminal: bool) -> None:
    """Say how far a step is; on a terminal the line takes the place of the last one."""
    if terminal:
        print(f"\r\x1b[Kdev: {line}", end="", file=sys.stderr, flush=True)
    else:
        say(line)


def say(message: str) -> None:
    print(f"dev: {message}", file=sys.stderr, flush=True)


def mark(name: str) -> str:
    """What `.venv` holds of this name; empty where it does not, or where the step was interrupted."""
    try:
        return (VENV / f".confcom-{name}").read_text()
    except OSError:
        return ""


@contextmanager
def marked(name: str, value: str) -> Iterator[None]:
    """Take the mark away during a step, and set it at the end."""
    path = VENV / f".confcom-{name}"
    path.unlink(missing_ok=True)
    yield
    path.write_text(value)


def usage() -> str:
    lines = ["usage: ./dev TASK [ARGUMENT…]", ""]
    lines += [f"  {name:10} {what}" for name, (what, _) in TASKS.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not arguments or arguments[0] not in TASKS:
        print(usage(), file=sys.stderr)
        fail(f"there is no task {arguments[0]!r}" if arguments else "name a task", 2)
    if arguments == ["run"]:
        fail("run needs a command: ./dev run confcom --help")
    set_up(tools=not any(arguments[: len(words)] == words for words in WITHOUT_TOOLS))
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(VENV),
    }
    *first, last = TASKS[arguments[0]][1]
    for command in first:
        code = subprocess.run(_command(command), cwd=ROOT, env=environment, check=False).returncode
        if code:
            return code
    # It takes the place of this process, so it gets signals itself, and ends in order on Ctrl-C.
    os.chdir(ROOT)
    words = _command([*last, *arguments[1:]])
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        fail(f"{words[0]}: {error.strerror}")


def _command(words: list[str]) -> list[str]:
    """The words, with the program of the development environment if it has one of that name."""
    program = BIN / words[0]
    return [str(program) if program.exists() else words[0], *words[1:]]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
