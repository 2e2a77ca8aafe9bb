"""An image as an OCI archive, as `ctr images import` and every other tool takes it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.layers import TIMESTAMP, Layer, add_bytes

_PREFIX = "application/vnd.oci.image"
_CREATED = "2026-01-01T00:00:00Z"
_PLATFORM = {"architecture": "amd64", "os": "linux"}


@dataclass(frozen=True)
class Settings:
    """What a container of the image starts with."""

    entrypoint: tuple[str, ...]
    user: str = ""
    environment: tuple[str, ...] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    labels: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> dict[str, object]:
        """As the image's configuration has it."""
        plain: dict[str, object] = {"Entrypoint": list(self.entrypoint), "Env": list(self.environment)}
        return plain | ({"User": self.user} if self.user else {}) | ({"Labels": self.labels} if self.labels else {})


def write_image(
    target: Path, name: str, layers: Sequence[Layer], settings: Settings, *, known: Collection[str] = ()
) -> str:
    """Write the archive and return the digest of the image's manifest, which is its identity.

    Layers whose digests are `known` are named and not written: whoever reads the archive has them.
    """
    config = _encode(
        _PLATFORM
        | {
            "created": _CREATED,
            "config": settings.encoded(),
            "rootfs": {"type": "layers", "diff_ids": [layer.content or layer.digest for layer in layers]},
        }
    )
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": f"{_PREFIX}.manifest.v1+json",
            "config": _descriptor(f"{_PREFIX}.config.v1+json", _digest(config), len(config)),
            "layers": [
                _descriptor(f"{_PREFIX}.layer.v1.tar{'+gzip' if layer.content else ''}", layer.digest, layer.size)
                for layer in layers
            ],
        }
    )
    fresh = target.with_suffix(".new")
    with tarfile.open(fresh, "w", format=tarfile.GNU_FORMAT) as archive:
        add_bytes(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add_bytes(archive, "index.json", _index(name, manifest))
        for document in (config, manifest):
            add_bytes(archive, _blob(_digest(document)), document)
        for layer in {layer.digest: layer for layer in layers if layer.digest not in known}.values():
            _add_layer(archive, layer)
    fresh.replace(target)
    return _digest(manifest)


def _index(name: str, manifest: bytes) -> bytes:
    entry = _descriptor(f"{_PREFIX}.manifest.v1+json", _digest(manifest), len(manifest)) | {
        "platform": _PLATFORM,
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1],
        },
    }
    return _encode({"schemaVersion": 2, "manifests": [entry]})


def _add_layer(archive: tarfile.TarFile, layer: Layer) -> None:
    entry = tarfile.TarInfo(_blob(layer.digest))
    entry.size, entry.mode, entry.mtime = layer.size, 0o644, TIMESTAMP
    with layer.path.open("rb") as content:
        archive.addfile(entry, content)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _encode(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
