"""From a commit to what is published, the same bytes each time; RELEASING.md says what there is.

Everything is made from what git has at that commit; files of the working tree do not count. What is downloaded is
kept, so that a later run needs no network.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from locked import provide
from testcluster.home import default_home

ROOT = Path(__file__).resolve().parent.parent
CHART_FILE = Path("deploy") / "helm" / "Chart.yaml"
PROJECT = "pyproject.toml"
VERSION_IN_PAGES = re.compile(r"(confcom(?:-[a-z-]+)?[:-])\d+\.\d+\.\d+")
"""Names of images (`confcom/confcom:0.1.0`) and of files of a release (`confcom-bundle-0.1.0.tar`)."""


BUILDERS = (
    ("one", 0o022, {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}),
    ("another folder", 0o077, {"TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8", "LC_ALL": "C"}),
)
"""Folder, umask and variables of each of the two builds that `--twice` compares."""


def git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"release: git {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def version_of(tree: Path) -> str:
    """The version on which project, chart and change log agree."""
    version: str = tomllib.loads((tree / PROJECT).read_text())["project"]["version"]
    chart = (tree / CHART_FILE).read_text()
    for key in ("version", "appVersion"):
        if not re.search(rf'^{key}: "?{re.escape(version)}"?$', chart, re.MULTILINE):
            sys.exit(f"release: {CHART_FILE}: {key} is not {version}, the version of pyproject.toml")
    if not re.search(rf"^## {re.escape(version)}\b", (tree / "CHANGELOG.md").read_text(), re.MULTILINE):
        sys.exit(f"release: CHANGELOG.md has no section for {version}: write what changed for users")
    return version


def make(reference: str, target: Path, *, tagged: bool, intel: Path | None = None) -> None:
    """Make all artifacts of a commit, and what is said about them, in an empty folder."""
    import release_artifacts as artifacts
    import release_statements as statements

    commit = git("rev-parse", "--verify", f"{reference}^{{commit}}").decode().strip()
    date = int(git("show", "-s", "--format=%ct", commit))
    kept = default_home().path / "images"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tree, target = Path(folder) / "tree", target.resolve()
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
            archive.extractall(tree, filter="data")
        source = artifacts.Source(tree, version_of(tree), commit, date, kept)
        if tagged and reference != f"v{source.version}":
            sys.exit(f"release: the tag is {reference}, the version v{source.version}: they must be the same")
        work = [Path(folder) / name for name in ("wheels", "images", "shell", "site", "bundle")]
        for path in work:
            path.mkdir()
        artifacts.packages(source, target)
        artifacts.wheels(source, target, work[0])
        artifacts.images(source, target, work[1], intel)
        artifacts.deployments(source, target)
        artifacts.shell_files(source, target, work[2])
        artifacts.site(source, target, work[3])
        inside = statements.sboms(source, target)
        inside[statements.PROVENANCE] = statements.provenance(source, target)
        artifacts.bundle(source, target, work[4], inside)
        for name, content in statements.sboms(source, target).items():
            (target / name).write_bytes(content)
        (target / statements.PROVENANCE).write_bytes(statements.provenance(source, target))
    (target / statements.SUMS).write_bytes(artifacts.checksums(target))
    statements.check(target)


def pages_with_versions(root: Path) -> list[Path]:
    """What users copy commands and manifests from."""
    found = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "examples").rglob("*.yaml")]
    return [path for path in found if VERSION_IN_PAGES.search(path.read_text())]


def prepare(version: str) -> None:
    """Write a version into project, chart, change log and generated files."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"release: {version!r} is no version: write it like 1.2.3")
    for path, pattern in (
        (ROOT / PROJECT, r'(^version = ")[^"]*'),
        (ROOT / CHART_FILE, r"(^(?:version|appVersion): ).*"),
    ):
        path.write_text(re.sub(pattern, rf"\g<1>{version}", path.read_text(), flags=re.MULTILINE))
    for path in pages_with_versions(ROOT):
        path.write_text(VERSION_IN_PAGES.sub(rf"\g<1>{version}", path.read_text()))
    for words in (["towncrier", "build", "--yes", "--version", version], ["./dev", "generate"]):
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            sys.exit(f"release: {' '.join(words)} failed")
    # A section that was begun by hand goes on below the heading of the release.
    begun = rf"(\nNo significant changes\.\n)?\n\n## {re.escape(version)} — unreleased\n"
    log = ROOT / "CHANGELOG.md"
    log.write_text(re.sub(begun, "", log.read_text()))


def twice(words: list[str]) -> None:
    """Make a release two times, as two users would on machines with other settings, and compare the bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        found = []
        for name, umask, variables in BUILDERS:
            folder = Path(temporary) / name
            folder.mkdir()
            command = [sys.executable, __file__, *words, "-o", str(folder / "made")]
            environment = os.environ | variables | {"TMPDIR": str(folder)}
            if subprocess.run(command, check=False, cwd=folder, env=environment, umask=umask).returncode:
                sys.exit("release: no release could be made to compare")
            found.append((folder / "made" / "SHA256SUMS").read_text().splitlines())
        if found[0] != found[1]:
            sys.exit("release: two runs differ:\n" + "\n".join(sorted(set(found[0]) ^ set(found[1]))))
        print(f"release: {len(found[0])} files, the same bytes twice")


def main(arguments: list[str]) -> int:
    """Make them, and say what is there."""
    parser = argparse.ArgumentParser(prog="./dev release", description=__doc__)
    parser.add_argument("tag", nargs="?", help="v and the version, e.g. v0.1.0; without it, a trial of HEAD")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign SHA256SUMS with this SSH key")
    parser.add_argument("--intel", type=Path, metavar="DIR", help="also the image with Intel's packages of this folder")
    parser.add_argument("--twice", action="store_true", help="make everything two times, compare, keep nothing")
    parser.add_argument("--try", dest="tried", type=Path, metavar="DIR", help="only try a release on a bare machine")
    parser.add_argument("--prepare", metavar="VERSION", help="only write the version and the change log")
    options = parser.parse_args(arguments)
    provide("release", "cyclonedx_py")
    provide("site", "zensical")
    if options.prepare:
        prepare(options.prepare)
        return 0
    if options.tried:
        environment = os.environ | {"CONFCOM_E2E_RELEASE": str(options.tried.resolve())}
        command = [sys.executable, "-m", "pytest", "-s", "tests/release"]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    reference, tagged = options.tag or "HEAD", options.tag is not None
    if options.twice:
        twice([word for word in arguments if word != "--twice"])
        return 0
    target: Path = options.output
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        parser.error(f"{target} is not empty: remove what is in it, or name another folder with -o")
    make(reference, target, tagged=tagged, intel=options.intel)
    if options.sign:
        import release_statements

        release_statements.sign(target, options.sign)
    if not options.intel:
        print("release: without the image that has Intel's libraries; --intel FOLDER makes it of Intel's packages")
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
