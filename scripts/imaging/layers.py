"""Layers that depend on nothing but their content: sorted, with fixed times, and owners that are said."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMESTAMP = 1767225600
"""2026-01-01, the time of every file and image; a build's own time would make each image another one."""


@dataclass(frozen=True)
class Layer:
    """A layer on disk; `content` is the digest of its tar where the file is that, compressed, and else empty."""

    path: Path
    digest: str
    size: int
    content: str = ""


def compressed(layer: Layer) -> Layer:
    """The same layer compressed by gzip, in a file beside it that is kept as long as the layer is."""
    target = layer.path.with_name(f"{layer.path.name}.gz")
    if not target.exists():
        fresh = target.with_suffix(".new")
        with (
            layer.path.open("rb") as source,
            fresh.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(source, packed, 2**20)
        fresh.replace(target)
    return Layer(target, digest_of(target), target.stat().st_size, layer.digest)


def layer_of_tree(root: Path, target: Path, *, keep_owners: bool = False) -> Layer:
    """The content of a folder as a layer; owned by root, unless owners (and special modes) are to be kept."""
    with target.open("wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in _walk(root):
            _add(archive, path, str(path.relative_to(root)), keep_owners=keep_owners)
    return Layer(target, digest_of(target), target.stat().st_size)


def digest_of(path: Path) -> str:
    """The digest as OCI writes it."""
    with path.open("rb") as source:
        return f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """One plain file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o644, TIMESTAMP
    archive.addfile(entry, io.BytesIO(content))


def _walk(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir(), key=lambda entry: entry.name.encode()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _add(archive: tarfile.TarFile, path: Path, name: str, *, keep_owners: bool) -> None:
    if stat.S_ISSOCK(path.lstat().st_mode):
        return
    entry = archive.gettarinfo(path, name)
    entry.mtime, entry.uname, entry.gname = TIMESTAMP, "", ""
    if not keep_owners:
        entry.uid = entry.gid = 0
        # The builder's umask is not part of the image.
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    if entry.isreg():
        with path.open("rb") as content:
            archive.addfile(entry, content)
    else:
        archive.addfile(entry)
