"""A real one-node Kubernetes on this machine, for the end-to-end tests; build, up, down, wipe, status, check, pin."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from imaging.layers import layer_of_tree
from imaging.oci import Settings, write_image
from testcluster.home import SOURCES, Home, default_home
from testcluster.machine import install_packages, reason_against
from testcluster.pin import pin
from testcluster.programs import adopt_runc, build, missing

PAUSE_IMAGE = "localhost/pause:1"


class Refused(Exception):
    """Raised where the machine cannot run the cluster; the text is the reason."""


def build_programs(home: Home) -> None:
    """Install and build whatever is not there; about fifteen minutes on two cores when nothing is."""
    if reason := reason_against(home):
        raise Refused(reason)
    install_packages()
    adopt_runc(home)
    programs = missing(home)
    for program in programs:
        print(f"cluster: building {program.name}", flush=True)
        build(home, program)
    archive = home.path / "images" / "pause.tar"
    if not archive.exists() or any(program.name == "pause" for program in programs):
        write_pause_image(home, archive)


def write_pause_image(home: Home, archive: Path) -> None:
    """The image of every pod's sandbox."""
    archive.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder) / "root"
        root.mkdir()
        root.joinpath("pause").write_bytes(home.programs.joinpath("pause").read_bytes())
        root.joinpath("pause").chmod(0o755)
        layer = layer_of_tree(root, Path(folder) / "layer")
        write_image(archive, PAUSE_IMAGE, [layer], Settings(entrypoint=("/pause",), user="65535:65535"))


def start(home: Home) -> None:
    """Build what is missing, then start what is not running."""
    build_programs(home)
    script(home, "up.sh")
    print(f"cluster: up; export KUBECONFIG={home.kubeconfig}")


def script(home: Home, name: str, *arguments: str) -> None:
    """Run one of the cluster's shell scripts."""
    subprocess.run([str(SOURCES / name), *arguments], env=home.environment(), check=True)


def status(home: Home) -> int:
    """Say what runs; the exit code is 0 when the node is ready."""
    return subprocess.run([str(SOURCES / "status.sh")], env=home.environment(), check=False).returncode


def check(home: Home) -> int:
    """Say whether this machine can run it."""
    reason = reason_against(home)
    print(f"cluster: {reason or 'this machine can run it'}")
    return 1 if reason else 0


def main(arguments: list[str]) -> int:
    """Carry out one word."""
    if arguments[:1] == ["pin"] and len(arguments) == 2:
        print(f"cluster: pinned by {pin(arguments[1].removeprefix('v'))}")
        return 0
    home = default_home()
    words: dict[str, Callable[[], int | None]] = {
        "build": lambda: build_programs(home),
        "up": lambda: start(home),
        "down": lambda: script(home, "down.sh"),
        "wipe": lambda: script(home, "down.sh", "--wipe"),
        "status": lambda: status(home),
        "check": lambda: check(home),
    }
    if len(arguments) != 1 or arguments[0] not in words:
        print(f"usage: ./dev cluster {'|'.join(words)}|pin VERSION", file=sys.stderr)
        return 2
    try:
        return words[arguments[0]]() or 0
    except Refused as reason:
        print(f"cluster: not possible on this machine: {reason}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"cluster: {' '.join(map(str, error.cmd))} failed with exit code {error.returncode}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
