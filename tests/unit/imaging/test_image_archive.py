"""An image is its content: neither times, nor the umask, nor the order of making files are in it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from imaging import base
from imaging.base import UNUSED_PACKAGES
from imaging.layers import Layer, compressed, layer_of_tree
from imaging.oci import Settings, write_image

FILES = {"usr/bin/tool": "#!/bin/sh\n", "usr/lib/a.py": "a = 1\n", "usr/lib/z.py": "z = 1\n"}


def tree(root: Path, names: list[str], *, mode: int, time: int) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[name])
        path.chmod(mode | (0o100 if name.startswith("usr/bin") else 0))
        os.utime(path, (time, time))
    (root / "usr" / "link").symlink_to("lib/a.py")
    return root


def layer(folder: Path, *, names: list[str], mode: int = 0o644, time: int = 0) -> Layer:
    folder.mkdir()
    return layer_of_tree(tree(folder / "root", names, mode=mode, time=time), folder / "layer.tar")


def test_the_same_files_are_the_same_layer(tmp_path: Path) -> None:
    one = layer(tmp_path / "one", names=list(FILES))
    two = layer(tmp_path / "two", names=list(reversed(FILES)), mode=0o600, time=1_700_000_000)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.digest == two.digest == f"sha256:{hashlib.sha256(one.path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", FILES)
def test_another_content_is_another_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = layer(tmp_path / "one", names=list(FILES))
    monkeypatch.setitem(FILES, name, "x")
    assert layer(tmp_path / "two", names=list(FILES)).digest != before.digest


def test_files_belong_to_root_and_programs_can_be_run(tmp_path: Path) -> None:
    with tarfile.open(layer(tmp_path / "one", names=list(FILES), mode=0o600).path) as archive:
        found = {entry.name: (entry.uid, entry.gid, oct(entry.mode), entry.mtime) for entry in archive}
    assert found["usr/bin/tool"] == (0, 0, "0o755", 1767225600)
    assert found["usr/lib/a.py"] == (0, 0, "0o644", 1767225600)
    assert found["usr"] == (0, 0, "0o755", 1767225600)


def test_an_archive_holds_what_its_index_names(tmp_path: Path) -> None:
    made = layer(tmp_path / "one", names=list(FILES))
    settings = Settings(entrypoint=("tool",), user="65532:65532", labels={"a": "b"})
    identity = write_image(tmp_path / "image.tar", "localhost/x:1", [made, made], settings)
    assert write_image(tmp_path / "again.tar", "localhost/x:1", [made, made], settings) == identity
    assert (tmp_path / "image.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    with tarfile.open(tmp_path / "image.tar") as archive:
        blobs = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    for name, content in blobs.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    (entry,) = json.loads(blobs["index.json"])["manifests"]
    assert (entry["digest"], entry["annotations"]["io.containerd.image.name"]) == (identity, "localhost/x:1")
    manifest = json.loads(blobs[f"blobs/{identity.replace(':', '/')}"])
    config = json.loads(blobs[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert config["rootfs"]["diff_ids"] == [made.digest, made.digest] == [one["digest"] for one in manifest["layers"]]
    assert (config["config"]["User"], config["config"]["Entrypoint"]) == ("65532:65532", ["tool"])


@pytest.mark.complaint("Azure/AKS #4506")
def test_a_known_layer_is_named_and_not_written(tmp_path: Path) -> None:
    layers = [layer(tmp_path / "one", names=list(FILES)), layer(tmp_path / "two", names=list(FILES)[:2])]
    settings, known = Settings(entrypoint=("tool",)), [layers[0].digest]
    identity = write_image(tmp_path / "image.tar", "localhost/x:1", layers, settings)
    assert write_image(tmp_path / "part.tar", "localhost/x:1", layers, settings, known=known) == identity
    with tarfile.open(tmp_path / "image.tar") as whole, tarfile.open(tmp_path / "part.tar") as part:
        assert set(whole.getnames()) - set(part.getnames()) == {"blobs/" + known[0].replace(":", "/")}


def test_a_builder_removes_the_same_packages() -> None:
    text = (Path(__file__).resolve().parents[3] / "deploy" / "Containerfile").read_text().replace("\\\n", "")
    assert tuple(tuple(found.split()) for found in re.findall(r"&& \$purge ([^&\n]+)", text)) == UNUSED_PACKAGES


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.intel"])
def test_a_builder_takes_the_base_by_its_digest(name: str) -> None:
    text = (Path(__file__).resolve().parents[3] / "deploy" / name).read_text()
    assert re.findall(r"^ARG BASE=.*@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert "--allow-unauthenticated" not in text
    assert "trusted=yes" not in text


def test_what_debian_did_not_sign_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that makes the base, as a stand-in for debootstrap saw it."""
    seen = tmp_path / "seen"
    program = tmp_path / "debootstrap"
    program.write_text(f'#!/bin/sh\necho "$@" > {seen}\nexit 1\n')
    program.chmod(0o755)
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    monkeypatch.setattr(base, "KEYRING", str(keyring))
    monkeypatch.setattr(base, "PATH", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        base.provide_base(tmp_path / "images")
    assert f"--force-check-gpg --keyring={keyring} " in seen.read_text()


def test_a_compressed_layer_is_the_same_content(tmp_path: Path) -> None:
    plain = layer(tmp_path / "one", names=list(FILES))
    small = compressed(plain)
    write_image(tmp_path / "image.tar", "localhost/x:1", [small], Settings(entrypoint=("x",)))
    with tarfile.open(tmp_path / "image.tar") as archive:
        names = [name for name in archive.getnames() if name.startswith("blobs/")]
        blobs = {name: archive.extractfile(name).read() for name in names}
    manifest = next(json.loads(blob) for blob in blobs.values() if b'"schemaVersion"' in blob)
    (described,) = manifest["layers"]
    assert described["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    packed = blobs[f"blobs/{described['digest'].replace(':', '/')}"]
    assert (len(packed), gzip.decompress(packed)) == (described["size"], plain.path.read_bytes())
    config = json.loads(blobs[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert config["rootfs"]["diff_ids"] == [plain.digest]
    assert compressed(plain) == small


def test_accounts_carry_no_day_of_the_build(tmp_path: Path) -> None:
    texts = []
    for day in ("20787", "20788"):
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc" / "shadow").write_text(f"root:*:{day}:0:99999:7:::\ndaemon:*:{day}:0:99999:7:::\n")
        base._date_accounts(tmp_path)
        texts.append((tmp_path / "etc" / "shadow").read_text())
    assert texts[0] == texts[1] == "root:*:20454:0:99999:7:::\ndaemon:*:20454:0:99999:7:::\n"
