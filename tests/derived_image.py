"""An image made of the built one: a layer with further files, and further variables. Only for the test cluster."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imaging.layers import Layer, layer_of_tree
from imaging.oci import Settings, write_image


def derive(home: Path, work: Path, name: str, tree: Path, environment: Sequence[str]) -> None:
    """Put the files of a folder over the cluster's image, and give the result to its container runtime."""
    with tarfile.open(home / "images" / "confcom.tar") as archive:
        manifest = _json(archive, _json(archive, {"path": "index.json"})["manifests"][0])
        config = _json(archive, manifest["config"])["config"]
        layers = [_extracted(archive, one, work) for one in manifest["layers"]]
    layers.append(layer_of_tree(tree, work / "more.tar"))
    settings = Settings(tuple(config["Entrypoint"]), config["User"], (*config["Env"], *environment), config["Labels"])
    write_image(work / "image.tar", name, layers, settings)
    program = [str(home / "bin" / "ctr"), "--address", str(home / "run" / "containerd" / "containerd.sock")]
    command = [*program, "-n", "k8s.io", "images", "import", "--local", str(work / "image.tar")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _extracted(archive: tarfile.TarFile, descriptor: dict[str, Any], work: Path) -> Layer:
    path = work / descriptor["digest"].partition(":")[2]
    path.write_bytes(_blob(archive, descriptor))
    return Layer(path, descriptor["digest"], descriptor["size"])


def _json(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> Any:
    return json.loads(_blob(archive, descriptor))


def _blob(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> bytes:
    member = archive.extractfile(descriptor.get("path") or "blobs/" + descriptor["digest"].replace(":", "/"))
    assert member is not None
    return member.read()
