"""Publishes the folder that `./dev release` made: checks it, then uploads it with gh, uv, skopeo and helm.

Each program takes its credentials as it always does. `--dry-run` checks, and prints the commands.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from locked import provide

ROOT = Path(__file__).resolve().parent.parent


def commands(folder: Path, version: str, registry: str, notes: Path) -> list[list[str]]:
    """What uploads a release; the page of the release comes last, when everything it names is there."""
    packages = [*map(str, sorted(folder.glob("confcom-*.whl"))), str(folder / f"confcom-{version}.tar.gz")]
    found = [["uv", "publish", "--check-url", "https://pypi.org/simple/", *packages]]
    for archive in sorted(folder.glob(f"confcom-*image-{version}.tar")):
        name = archive.name.removesuffix(f"-image-{version}.tar")
        found.append(["skopeo", "copy", f"oci-archive:{archive}", f"docker://{registry}/{name}:{version}"])
    found.append(["helm", "push", str(folder / f"confcom-chart-{version}.tgz"), f"oci://{registry}/charts"])
    files = [str(path) for path in sorted(folder.iterdir())]
    release = ["gh", "release", "create", f"v{version}", "--verify-tag", "--title", f"confcom {version}"]
    return [*found, [*release, "--notes-file", str(notes), *files]]


def notes_of(version: str, changelog: str) -> str:
    """The section of a version in the change log."""
    found = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"publish: CHANGELOG.md has no section for {version}")
    return found[1].strip() + "\n"


def main(arguments: list[str]) -> int:
    """Check, then upload or print."""
    parser = argparse.ArgumentParser(prog="./dev publish", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist", help="default: dist")
    parser.add_argument("--registry", default="ghcr.io/confcom", help="of images and chart (default: ghcr.io/confcom)")
    parser.add_argument("--signers", type=Path, metavar="FILE", help="the signature must be by a key of this file")
    parser.add_argument("--dry-run", action="store_true", help="only check, and print what would be run")
    options = parser.parse_args(arguments)
    provide("release", "cyclonedx_py")
    from release_statements import check

    version = check(options.folder, options.signers)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.md"
        notes.write_text(notes_of(version, (ROOT / "CHANGELOG.md").read_text()))
        for command in commands(options.folder, version, options.registry, notes):
            print(shlex.join(command), flush=True)
            if options.dry_run:
                continue
            if shutil.which(command[0]) is None:
                sys.exit(f"publish: there is no {command[0]} here: install it")
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"publish: {command[0]} failed; run it again when that is mended: what is there is left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
