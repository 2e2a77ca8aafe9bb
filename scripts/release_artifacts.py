"""What a release consists of, each made of the tree of a commit: packages, images, chart, shell files, site, bundle.

Downloads (Debian's base, wheels) are kept in a folder, so that a second run needs no network.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

from image import SETTINGS, make_layers
from imaging.layers import Layer, compressed, layer_of_tree
from imaging.oci import Settings, write_image
from testcluster.machine import IMAGE_TOOLS, install_packages, reason_against_image

CHART = Path("deploy") / "helm"
KUSTOMIZE = Path("deploy") / "kustomize"
TOOLS = Path("requirements") / "release.txt"
INSTALLER = Path("scripts") / "bundle_install.py"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
IMAGES = {"confcom-image": "confcom", "confcom-examples-image": "examples", "confcom-intel-image": "confcom-intel"}
"""Artifact to the name of its image, in the repository `confcom`."""
_INTEL = Path("usr") / "lib" / "x86_64-linux-gnu"


@dataclass(frozen=True)
class Source:
    """The tree of a commit, unpacked; `date` is the commit's, in seconds."""

    tree: Path
    version: str
    commit: str
    date: int
    kept: Path

    def environment(self) -> dict[str, str]:
        """What builds go by, so that they do not go by the machine."""
        stamp = {"SOURCE_COMMIT": self.commit, "SOURCE_DATE_EPOCH": str(self.date)}
        fixed = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        return os.environ | stamp | fixed

    def run(self, *words: str) -> None:
        """Run a program of this environment in the tree."""
        subprocess.run([sys.executable, *words], cwd=self.tree, env=self.environment(), check=True)


def packed(folder: Path, prefix: str, date: int, *, zipped: bool = True) -> bytes:
    """A folder's files as a tar archive below a folder of its own; programs stay programs, all else is 0644."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"{prefix}/{path.relative_to(folder)}")
            content = path.read_bytes()
            entry.size, entry.mtime = len(content), date
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(found.getvalue(), mtime=date) if zipped else found.getvalue()


def packages(source: Source, target: Path) -> None:
    """Wheel and sdist."""
    source.run("-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(target))


def chart_package(tree: Path, date: int) -> bytes:
    """The chart as `helm package` lays it out: everything below a folder with the chart's name."""
    for path in (tree / CHART).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return packed(tree / CHART, "confcom", date)


def deployments(source: Source, target: Path) -> None:
    """Chart and kustomize base."""
    (target / f"confcom-chart-{source.version}.tgz").write_bytes(chart_package(source.tree, source.date))
    base = packed(source.tree / KUSTOMIZE, f"confcom-kustomize-{source.version}", source.date)
    (target / f"confcom-kustomize-{source.version}.tar.gz").write_bytes(base)


def shell_files(source: Source, target: Path, work: Path) -> None:
    """Completions and man pages, laid out as below `/usr/share`."""
    environment = source.environment() | {"PYTHONPATH": str(source.tree / "src")}
    command = [sys.executable, str(source.tree / "scripts" / "shell_files.py"), str(work), source.version]
    subprocess.run([*command, str(source.date)], env=environment, check=True)
    name = f"confcom-shell-{source.version}"
    (target / f"{name}.tar.gz").write_bytes(packed(work, name, source.date))


def site(source: Source, target: Path, work: Path) -> None:
    """The documentation site."""
    source.run("scripts/documentation_site.py", str(work))
    # Compressed a second time, with the time of the build in it.
    for path in work.rglob("sitemap.xml.gz"):
        path.unlink()
    name = f"confcom-site-{source.version}"
    (target / f"{name}.tar.gz").write_bytes(packed(work, name, source.date))


def wheels(source: Source, target: Path, work: Path) -> None:
    """The wheel, all that it needs, and pip."""
    locks = [source.tree / "requirements" / "run.txt", work / "pip.txt"]
    pip = re.search(r"^pip==\S+ \\\n(    --hash=\S+( \\)?\n?)+", (source.tree / TOOLS).read_text(), re.MULTILINE)
    if pip is None:
        sys.exit(f"release: {TOOLS} has no pip")
    locks[1].write_text(pip[0])
    key = hashlib.sha256(b"\0".join([*(lock.read_bytes() for lock in locks), repr((PYTHONS, PLATFORMS)).encode()]))
    kept = source.kept / f"wheels-{key.hexdigest()[:16]}"
    if not kept.is_dir():
        fresh = source.kept / "wheels.new"
        for old in source.kept.glob("wheels*"):
            shutil.rmtree(old)
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        command = ["-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--dest", str(fresh), *platforms, "--implementation", "cp"]
        given = [word for lock in locks for word in ("-r", str(lock))]
        for python in PYTHONS:
            source.run(*command, "--python-version", python, *given)
        fresh.rename(kept)
    folder = work / "wheels"
    shutil.copytree(kept, folder)
    shutil.copy(next(target.glob("confcom-*.whl")), folder)
    name = f"confcom-wheels-{source.version}"
    (target / f"{name}.tar").write_bytes(packed(folder, name, source.date, zipped=False))


def images(source: Source, target: Path, work: Path, intel: Path | None) -> None:
    """The images as OCI archives, with compressed layers."""
    if reason := reason_against_image():
        sys.exit(f"release: images cannot be made on this machine: {reason}")
    install_packages(IMAGE_TOOLS)
    layers = make_layers(source.kept, work, next(target.glob("confcom-*.whl")))
    _write_image(source, target, "confcom-image", layers, SETTINGS)
    shutil.copytree(source.tree / "examples", work / "root" / "examples")
    more = layer_of_tree(work / "root", work / "examples.tar")
    _write_image(source, target, "confcom-examples-image", [*layers, more], replace(SETTINGS, entrypoint=("python3",)))
    if intel is not None:
        more = layer_of_tree(intel_files(intel, work / "intel"), work / "intel.tar")
        _write_image(source, target, "confcom-intel-image", [*layers, more], SETTINGS)


def _write_image(source: Source, target: Path, artifact: str, layers: list[Layer], settings: Settings) -> None:
    title = IMAGES[artifact]
    opencontainers = {"title": title, "version": source.version, "revision": source.commit}
    labels = settings.labels | {f"org.opencontainers.image.{key}": value for key, value in opencontainers.items()}
    small = [compressed(layer) for layer in layers]
    name = f"docker.io/confcom/{title}:{source.version}"
    write_image(target / f"{artifact}-{source.version}.tar", name, small, replace(settings, labels=labels))


def intel_files(packages: Path, target: Path) -> Path:
    """Intel's libraries, enclaves and provider's configuration, as `deploy/Containerfile.intel` takes them."""
    found = sorted(packages.glob("*.deb"))
    if not found:
        sys.exit(f"release: {packages} holds no Debian packages; deploy/Containerfile.intel names those of Intel")
    everything = target / "everything"
    everything.mkdir(parents=True)
    for package in found:
        subprocess.run(["dpkg-deb", "--extract", str(package), str(everything)], check=True)
    image = target / "image"
    shutil.copytree(everything / _INTEL, image / _INTEL, symlinks=True)
    (image / "etc").mkdir()
    shutil.copy(everything / "etc" / "sgx_default_qcnl.conf", image / "etc")
    link = image / _INTEL / "libdcap_quoteprov.so"
    link.unlink(missing_ok=True)
    link.symlink_to("libdcap_quoteprov.so.1")
    return image


def bundle(source: Source, target: Path, work: Path, statements: dict[str, bytes]) -> None:
    """Everything that was made so far, and what says where it is from, with an installer and checksums."""
    for path in sorted(target.iterdir()):
        if path.name.startswith(("confcom-wheels", "confcom-shell")):
            with tarfile.open(path) as archive:
                archive.extractall(work, filter="data")
        else:
            shutil.copy(path, work)
    (work / f"confcom-wheels-{source.version}").rename(work / "wheels")
    (work / f"confcom-shell-{source.version}").rename(work / "shell")
    for name, content in statements.items():
        (work / name).write_bytes(content)
    for path in (source.tree / INSTALLER, source.tree / "examples" / "attest.yaml"):
        shutil.copy(path, work)
    (work / INSTALLER.name).rename(work / "install")
    (work / "install").chmod(0o755)
    (work / "SHA256SUMS").write_bytes(checksums(work))
    name = f"confcom-bundle-{source.version}"
    (target / f"{name}.tar").write_bytes(packed(work, name, source.date, zipped=False))


def checksums(folder: Path) -> bytes:
    """Every file of a folder as `sha256sum` writes it, but the checksums themselves."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("SHA256SUMS"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in found]
    return "".join(lines).encode()
