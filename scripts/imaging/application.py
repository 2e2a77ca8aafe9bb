"""The layers above the base: the locked dependencies, and confcom itself from the checkout."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from imaging.base import Base
from imaging.layers import Layer, layer_of_tree

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements" / "run.txt"
COMMAND = ROOT / "deploy" / "confcom"

_UV = (
    *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--system-certs", "--no-deps", "--link-mode", "copy"),
    *("--no-compile-bytecode", "--only-binary", ":all:", "--python-platform", "x86_64-manylinux_2_40"),
)


def dependencies_layer(base: Base, target: Path) -> Layer:
    """What requirements/run.txt names, byte-compiled."""

    def install(site: Path, _: Path) -> None:
        _install(base, site, "--require-hashes", "-r", str(LOCK))

    return _layer(base, target, install)


def confcom_layer(base: Base, target: Path, wheel: Path) -> Layer:
    """The wheel of confcom, and its command."""

    def install(site: Path, root: Path) -> None:
        _install(base, site, "--no-index", str(wheel))
        program = root / "usr" / "local" / "bin" / "confcom"
        program.parent.mkdir(parents=True)
        program.write_bytes(COMMAND.read_bytes())
        program.chmod(0o755)

    return _layer(base, target, install)


def dependencies_key(base: Base) -> str:
    """Digest of what the layer of dependencies is made from."""
    parts = (base.layer.digest.encode(), LOCK.read_bytes(), Path(__file__).read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def build_wheel(folder: Path) -> Path:
    """Build the wheel with the locked tools of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def _install(base: Base, site: Path, *words: str) -> None:
    command = [*_UV, "--python-version", base.python, "--target", str(site), *words]
    subprocess.run(command, check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)
    (site / ".lock").unlink(missing_ok=True)
    for metadata in site.glob("*.dist-info"):
        # The path it was installed from, and entry points that are not in the image.
        for name in ("REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"):
            (metadata / name).unlink(missing_ok=True)
        record = metadata / "RECORD"
        gone = re.compile(r"(\.\./\.\./|bin/|[^,]*/(REQUESTED|direct_url\.json|uv_[a-z]+\.json),)")
        lines = [line for line in record.read_text().splitlines(keepends=True) if gone.match(line) is None]
        record.write_text("".join(lines))


def _layer(base: Base, target: Path, install: Callable[[Path, Path], None]) -> Layer:
    with tempfile.TemporaryDirectory(dir=base.root, prefix="layer-") as name:
        root = Path(name)
        place = Path("usr") / "local" / "lib" / f"python{base.python}" / "dist-packages"
        site = root / place
        site.mkdir(parents=True)
        install(site, root)
        base.compile(site, f"/{place}")
        return layer_of_tree(root, target)
