#!/usr/bin/env python3
"""Installs confcom from this folder: no network, no pip, only Python 3.11 to 3.14 on Linux on x86-64.

    ./install                    the command, for this user, in ~/.local
    ./install --prefix DIR       the same in another folder, such as /usr/local
    ./install images             the images, into this node's container engine

Files are compared with SHA256SUMS before any is used. Who made them is shown by the signature of the folder that the
bundle came from: RELEASING.md, "Check a release".
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXTRAS = "confcom[cli,node,services,kube]"
PROGRAMS = ("confcom", "kubectl-confcom")
ENGINES = {
    "ctr": ["ctr", "--namespace", "k8s.io", "images", "import"],
    "k3s": ["k3s", "ctr", "images", "import"],
    "nerdctl": ["nerdctl", "--namespace", "k8s.io", "load", "--input"],
    "podman": ["podman", "load", "--input"],
    "docker": ["docker", "load", "--input"],
}
"""In the order in which they are looked for; podman's images are those of CRI-O where both keep them in one place."""


def fail(message: str) -> None:
    sys.exit(f"install: {message}")


def check_machine() -> None:
    """Refuse a machine that the wheels and images are not for."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 14) or (sys.platform, os.uname().machine) != ("linux", "x86_64"):
        found = f"Python {sys.version.split()[0]}, {sys.platform} on {os.uname().machine}"
        fail(f"the bundle is for Python 3.11 to 3.14 on Linux on x86-64, and this is {found}")


def compare() -> None:
    """Compare every file of the folder with SHA256SUMS, which names all of them."""
    sums = HERE / "SHA256SUMS"
    if not sums.is_file():
        fail(f"{sums} is missing: unpack the bundle again")
    named = {name: digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())}
    there = {str(path.relative_to(HERE)) for path in HERE.rglob("*") if path.is_file() and path != sums}
    for name in sorted(there - named.keys()):
        fail(f"{HERE / name} is not in SHA256SUMS: remove it, or unpack the bundle again")
    for name, digest in named.items():
        path = HERE / name
        if not path.is_file():
            fail(f"{path} is missing: unpack the bundle again")
        with path.open("rb") as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != digest:
                fail(f"{path} is not what SHA256SUMS says it is: fetch the bundle again")


def install_command(prefix: Path) -> None:
    """An environment of its own below the prefix, with links to its programs, completions and man pages."""
    environment = prefix / "lib" / "confcom"
    wheels = HERE / "wheels"
    pip = next(wheels.glob("pip-*.whl"))
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(environment)
        python = environment / "bin" / "python"
        command = [str(python), "-I", str(pip / "pip"), "install", "--quiet", "--no-index", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--find-links", str(wheels), EXTRAS]
        # What pip is told elsewhere (pip.conf of the machine and of the user, variables) is not about this folder.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        if subprocess.run(command, check=False, env=own | {"PIP_CONFIG_FILE": os.devnull}).returncode:
            fail(f"pip could not install {EXTRAS} from {wheels}")
        for name in PROGRAMS:
            link = prefix / "bin" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(environment / "bin" / name)
        shutil.copytree(HERE / "shell", prefix / "share", dirs_exist_ok=True)
    except OSError as error:
        fail(f"cannot write below {prefix}: {error}; name another folder with --prefix")
    print(f"install: {prefix / 'bin' / 'confcom'}")
    if str(prefix / "bin") not in os.environ.get("PATH", "").split(os.pathsep):
        print(f'install: this folder is not on your PATH: export PATH="{prefix / "bin"}:$PATH"')


def load_images(engine: str | None) -> None:
    """Give each image of the folder to a container engine of this machine."""
    names = [engine] if engine else [name for name in ENGINES if shutil.which(name)]
    if not names or not shutil.which(names[0]):
        fail(f"there is no {engine or ', '.join(ENGINES)} on this machine's PATH")
    for archive in sorted(HERE.glob("confcom-*image-*.tar")):
        command = [*ENGINES[names[0]], str(archive)]
        if subprocess.run(command, check=False).returncode:
            fail(f"{' '.join(command)} failed")


def main() -> None:
    """Compare, then install."""
    usage = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="./install", **usage)  # type: ignore[arg-type]
    parser.add_argument("what", nargs="?", choices=("command", "images"), default="command")
    parser.add_argument("--prefix", type=Path, default=Path.home() / ".local", help="default: ~/.local")
    parser.add_argument("--engine", choices=ENGINES, help="default: the first of these that is there")
    options = parser.parse_args()
    check_machine()
    compare()
    if options.what == "images":
        load_images(options.engine)
    else:
        install_command(options.prefix.absolute())


if __name__ == "__main__":
    main()
