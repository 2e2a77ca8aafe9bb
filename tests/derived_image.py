"""Images for the test cluster alone: the built one with further files and variables, or just one program."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imaging.layers import Layer, layer_of_tree
from imaging.oci import Settings, write_image


def derive(home: Path, work: Path, name: str, tree: Path, environment: Sequence[str]) -> None:
    """Put the files of a folder over the cluster's image, of which the container runtime has the layers."""
    with tarfile.open(home / "images" / "confcom.tar") as archive:
        manifest = _json(archive, _json(archive, {"path": "index.json"})["manifests"][0])
        config = _json(archive, manifest["config"])["config"]
    below = [Layer(home, one["digest"], one["size"]) for one in manifest["layers"]]
    settings = Settings(tuple(config["Entrypoint"]), config["User"], (*config["Env"], *environment), config["Labels"])
    _give(home, work, name, [*below, layer_of_tree(tree, work / "more.tar")], settings, [one.digest for one in below])


def image_of_program(home: Path, work: Path, name: str, program: str) -> None:
    """An image with one static program of the cluster's own, as user 65532."""
    (work / "root").mkdir()
    shutil.copy2(home / "bin" / program, work / "root" / program)
    layer = layer_of_tree(work / "root", work / "program.tar")
    _give(home, work, name, [layer], Settings(entrypoint=(f"/{program}",), user="65532:65532"))


def _give(
    home: Path, work: Path, name: str, layers: Sequence[Layer], settings: Settings, known: Sequence[str] = ()
) -> None:
    """Write the image and import it into the cluster's container runtime."""
    write_image(work / "image.tar", name, layers, settings, known=known)
    program = [str(home / "bin" / "ctr"), "--address", str(home / "run" / "containerd" / "containerd.sock")]
    command = [*program, "-n", "k8s.io", "images", "import", "--local", str(work / "image.tar")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _json(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> Any:
    member = archive.extractfile(descriptor.get("path") or "blobs/" + descriptor["digest"].replace(":", "/"))
    assert member is not None
    return json.load(member)
