"""From a tag to what is published: sdist, wheel, Helm chart and their checksums, the same bytes for the same tag.

Everything is made from what git has at that tag; files of the working tree do not count.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = Path("deploy") / "helm"


def git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"release: git {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def version_of(tree: Path) -> str:
    """The version on which project, chart and change log agree."""
    version: str = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["version"]
    chart = (tree / CHART / "Chart.yaml").read_text()
    for key in ("version", "appVersion"):
        if not re.search(rf'^{key}: "?{re.escape(version)}"?$', chart, re.MULTILINE):
            sys.exit(f"release: {CHART}/Chart.yaml: {key} is not {version}, the version of pyproject.toml")
    if not re.search(rf"^## {re.escape(version)}\b", (tree / "CHANGELOG.md").read_text(), re.MULTILINE):
        sys.exit(f"release: CHANGELOG.md has no section for {version}: write what changed for users")
    return version


def chart_package(tree: Path, mtime: int) -> bytes:
    """The chart as `helm package` lays it out: everything below a folder with the chart's name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in (tree / CHART).rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"confcom/{path.relative_to(tree / CHART)}")
            content = path.read_bytes()
            entry.size, entry.mtime, entry.mode = len(content), mtime, 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=mtime)


def make(reference: str, target: Path, *, tagged: bool) -> list[Path]:
    """Make all artifacts of a commit in an empty folder."""
    commit = git("rev-parse", "--verify", f"{reference}^{{commit}}").decode().strip()
    mtime = int(git("show", "-s", "--format=%ct", commit))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
            archive.extractall(tree, filter="data")
        version = version_of(tree)
        if tagged and reference != f"v{version}":
            sys.exit(f"release: the tag is {reference}, the version v{version}: they must be the same")
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(mtime)}
        build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
        subprocess.run([*build, "-d", str(target.resolve())], cwd=tree, env=environment, check=True)
        (target / f"confcom-chart-{version}.tgz").write_bytes(chart_package(tree, mtime))
    made = sorted(target.iterdir())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    (target / "SHA256SUMS").write_text("".join(sums))
    return [*made, target / "SHA256SUMS"]


def main(arguments: list[str]) -> int:
    """Make them, and say what is there."""
    parser = argparse.ArgumentParser(prog="./dev release", description=__doc__)
    parser.add_argument("tag", nargs="?", help="v and the version, e.g. v0.1.0; without it, a trial of HEAD")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    options = parser.parse_args(arguments)
    target: Path = options.output
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        parser.error(f"{target} is not empty: remove what is in it, or name another folder with -o")
    for path in make(options.tag or "HEAD", target, tagged=options.tag is not None):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
