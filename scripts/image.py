"""The container image from this checkout, without a registry or a daemon: base, dependencies, confcom.

The upper two layers, and so everything that this project decides, are the same bytes for the same sources.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from imaging.application import build_wheel, confcom_layer, dependencies_key, dependencies_layer
from imaging.base import USER, provide_base
from imaging.layers import Layer, digest_of
from imaging.oci import Settings, write_image
from testcluster.home import default_home
from testcluster.machine import IMAGE_TOOLS, install_packages, reason_against_image

NAME = "localhost/confcom:dev"
SETTINGS = Settings(
    entrypoint=("confcom",),
    user=f"{USER}:{USER}",
    environment=(
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "LANG=C.UTF-8",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONUNBUFFERED=1",
    ),
    labels={"org.opencontainers.image.title": "confcom", "org.opencontainers.image.licenses": "Apache-2.0"},
)


def make(folder: Path, name: str) -> tuple[Path, str]:
    """Make the image's archive in a folder that is also the cache; the archive and the image's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "confcom.tar"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        layers = make_layers(folder, Path(work), build_wheel(Path(work)))
        digest = write_image(archive, name, layers, SETTINGS)
    return archive, digest


def make_layers(folder: Path, work: Path, wheel: Path) -> list[Layer]:
    """Base, dependencies and confcom; the first two are kept in the folder, the third is made in `work`."""
    base = provide_base(folder)
    kept = folder / f"dependencies-{dependencies_key(base)}.tar"
    if not kept.exists():
        for old in folder.glob("dependencies-*"):
            old.unlink()
        fresh = folder / "dependencies.new"
        dependencies_layer(base, fresh)
        fresh.rename(kept)
    dependencies = Layer(kept, digest_of(kept), kept.stat().st_size)
    application = confcom_layer(base, work / "confcom.tar", wheel)
    for what, layer in (("base", base.layer), ("dependencies", dependencies), ("confcom", application)):
        print(f"image: {what:12} {layer.size / 2**20:6.1f} MiB  {layer.digest}")
    return [base.layer, dependencies, application]


def load(archive: Path) -> None:
    """Give the image to the cluster's containerd."""
    home = default_home()
    program = [str(home.programs / "ctr"), "--address", str(home.runtime_socket), "-n", "k8s.io"]
    subprocess.run([*program, "images", "import", "--local", str(archive)], check=True)


def main(arguments: list[str]) -> int:
    """Make it, and hand it over where that is asked for."""
    parser = argparse.ArgumentParser(prog="./dev image", description=__doc__)
    parser.add_argument("--name", default=NAME, help=f"name and tag (default: {NAME})")
    parser.add_argument("--load", action="store_true", help="import it into the containerd of `./dev cluster`")
    options = parser.parse_args(arguments)
    if reason := reason_against_image():
        print(f"image: not possible on this machine: {reason}", file=sys.stderr)
        return 1
    install_packages(IMAGE_TOOLS)
    archive, digest = make(default_home().path / "images", options.name)
    print(f"image: {options.name} {digest} in {archive} ({archive.stat().st_size / 2**20:.0f} MiB)")
    if options.load:
        load(archive)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
