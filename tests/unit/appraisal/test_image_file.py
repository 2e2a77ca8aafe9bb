"""Signed enclaves in saved images: layers in their order, whiteouts, both forms of archive, and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from confcom.appraisal.enclave_file import enclaves_of, is_archive, read_image_enclave
from confcom.errors import FormatError, SignatureError
from confcom.simulator.declaration import measure
from signed_enclaves import enclave_file, sigstruct

APP, OTHER = enclave_file(sigstruct("app")), enclave_file(sigstruct("other"))
Files = Mapping[str, bytes | None]


def tar(files: Files) -> bytes:
    """An archive; None makes a folder."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return made.getvalue()


def saved(*layers: Files) -> bytes:
    """As `docker save` writes it; the layers stand in the reverse order in the archive."""
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    files = {name: tar(layer) for name, layer in reversed(list(zip(names, layers, strict=True)))}
    return tar(files | {"manifest.json": json.dumps([{"Config": "x", "Layers": names}]).encode()})


def oci(*layers: Files, platforms: Sequence[str] = ("amd64",)) -> bytes:
    """An archive of the OCI's layout, its layers packed with gzip, with an index of platforms."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> dict[str, str]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}"}

    manifest = blob(json.dumps({"layers": [blob(gzip.compress(tar(layer))) for layer in layers]}).encode())
    index = [manifest | {"platform": {"architecture": platform, "os": "linux"}} for platform in platforms]
    inner = blob(json.dumps({"manifests": index}).encode())
    return tar(blobs | {"index.json": json.dumps({"manifests": [inner]}).encode()})


def found(image: bytes) -> dict[str, bytes]:
    return {
        path: enclave.mr_enclave
        for path, enclave in enclaves_of(io.BytesIO(image)).items()
        if not isinstance(enclave, SignatureError)
    }


@pytest.mark.parametrize("archive", [saved, oci])
def test_enclaves_are_found_as_the_container_sees_them(archive: object) -> None:
    image = archive(  # type: ignore[operator]
        {"app/one.so": APP, "app/two.so": APP, "opt/": None, "opt/a.so": APP, "usr/lib/x.so": b"\x7fELF" * 99},
        {"./app/one.so": OTHER, "app/.wh.two.so": b"", "opt/.wh..wh..opq": b"", "opt/b.so": APP},
        {"app/readme": b"text"},
    )
    assert is_archive(image[:512])
    assert found(image) == {"app/one.so": measure("enclave other"), "opt/b.so": measure("enclave app")}


def test_a_folder_that_is_deleted_takes_its_files_along_and_no_others() -> None:
    image = saved({"app/x/e.so": APP, "app/xy/e.so": APP}, {"app/.wh.x": b""})
    assert list(found(image)) == ["app/xy/e.so"]


def test_of_several_platforms_that_of_sgx_counts() -> None:
    image = oci({"e.so": APP}, platforms=("amd64",))
    assert list(found(image)) == ["e.so"]
    with pytest.raises(FormatError, match="holds 2 images for amd64"):
        found(oci({"e.so": APP}, platforms=("amd64", "amd64")))


def test_one_of_several_has_to_be_named() -> None:
    image = saved({"app/one.so": APP, "lib/qe3.so": OTHER})
    with pytest.raises(FormatError, match="has 2 signed enclaves") as caught:
        read_image_enclave(io.BytesIO(image))
    assert caught.value.advice() == "Name one with --file: /app/one.so, /lib/qe3.so."
    assert read_image_enclave(io.BytesIO(image), "/app/one.so").mr_enclave == measure("enclave app")
    with pytest.raises(FormatError, match="no signed enclave at /app") as caught:
        read_image_enclave(io.BytesIO(image), "/app")
    assert "/app/one.so, /lib/qe3.so" in caught.value.advice()


def test_an_enclave_with_a_wrong_signature_is_called_so() -> None:
    forged = enclave_file(replace(sigstruct("app"), isv_svn=9))
    for path in (None, "app/app.so"):
        with pytest.raises(SignatureError, match=r"^/app/app\.so of the image: the SIGSTRUCT at byte 1025 was not"):
            read_image_enclave(io.BytesIO(saved({"app/app.so": forged})), path)
    sound = {"app/app.so": forged, "app/other.so": enclave_file(sigstruct("other"))}
    assert read_image_enclave(io.BytesIO(saved(sound))).mr_enclave == sigstruct("other").enclave_hash
    # A later layer that has the right file in its place.
    mended = saved({"app/app.so": forged}, {"app/app.so": enclave_file(sigstruct("app"))})
    assert read_image_enclave(io.BytesIO(mended)).sigstruct.isv_svn == 3


def test_copies_of_one_enclave_are_one() -> None:
    assert read_image_enclave(io.BytesIO(saved({"a.so": APP, "b.so": APP}))).mr_enclave == measure("enclave app")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (saved({"app": b"\x7fELF"}), "has no signed enclave in it"),
        (tar({"x": b"y"}), "is no image: it has neither manifest.json nor index.json"),
        (tar({"manifest.json": b"{"}), "has a malformed manifest.json"),
        (tar({"manifest.json": b"[" * 100_000}), "has a malformed manifest.json"),
        (tar({"manifest.json": b"[]"}), "holds 0 images"),
        (tar({"manifest.json": b'[{"Layers":["gone"]}]'}), "lacks gone, which it names"),
        (tar({"manifest.json": b'[{"Layers":["x"]}]', "x": None}), "lacks x"),
        (tar({"manifest.json": b'[{"Layers":["x"]}]', "x": b"\x28\xb5\x2f\xfd"}), "packed with zstd"),
        (tar({"manifest.json": b'[{"Layers":["x"]}]', "x": b"\x1f\x8b nonsense"}), "cannot be read"),
        (saved({"a": APP})[:2000], "cannot be read|lacks|is no image"),
        (b"", "cannot be read"),
    ],
)
def test_what_is_no_image_is_explained(image: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_image_enclave(io.BytesIO(image))


def test_a_header_that_announces_a_long_name_is_refused_before_it_is_read() -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    layer = header.tobuf(tarfile.GNU_FORMAT)
    image = tar({"manifest.json": b'[{"Layers":["x"]}]', "x": layer})
    with pytest.raises(FormatError, match="has a header of 8589934592 bytes"):
        found(image)


def header(name: str, kind: bytes, size: int = 0, linkname: str = "") -> bytes:
    """One header by itself, of any type."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, linkname
    return member.tobuf(tarfile.GNU_FORMAT)


def entry(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, kind, len(content)) + content + bytes(-len(content) % 512)


def pax(kind: bytes = tarfile.XHDTYPE, **values: str) -> bytes:
    """A header with records of POSIX; underlines in their names stand for dots."""
    rows = []
    for name, value in values.items():
        row = f" {name.replace('_', '.')}={value}\n"
        rows.append(next(f"{size}{row}" for size in range(len(row), 2000) if size == len(f"{size}{row}")))
    return entry("pax", "".join(rows).encode(), kind)


def image_of(*layers: bytes) -> bytes:
    names = [f"{number}.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Layers": names}]).encode()
    return tar({"manifest.json": manifest} | dict(zip(names, layers, strict=True)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.CHRTYPE])
def test_what_takes_the_place_of_a_folder_hides_what_is_in_it(kind: bytes) -> None:
    below = tar({"app/e.so": APP, "apple/e.so": APP, "evil/e.so": OTHER})
    assert list(found(image_of(below, header("app", kind, linkname="evil")))) == ["apple/e.so", "evil/e.so"]
    assert list(found(image_of(below, tar({"app": None})))) == ["app/e.so", "apple/e.so", "evil/e.so"]
    assert list(found(image_of(below, tar({"app/e.so": None})))) == ["apple/e.so", "evil/e.so"]


def test_a_hard_link_is_the_file_that_it_names() -> None:
    link = header("lib/e.so", tarfile.LNKTYPE, linkname="app/e.so")
    both = {"app/e.so": measure("enclave app"), "lib/e.so": measure("enclave app")}
    assert found(image_of(entry("app/e.so", APP) + link)) == both
    assert found(image_of(tar({"app/e.so": APP}), link)) == both
    assert found(image_of(tar({"app/e.so": APP, "lib/e.so": OTHER}), link)) == both
    gone = header("app/e.so", tarfile.LNKTYPE, linkname="nowhere")
    assert not found(image_of(tar({"app/e.so": APP}), gone))


def test_a_damaged_header_is_not_the_end_of_a_layer() -> None:
    layer = entry("a/e.so", APP) + entry("b/e.so", OTHER)
    damaged = bytearray(layer)
    damaged[len(entry("a/e.so", APP)) + 3] ^= 1
    for broken in (bytes(damaged), layer[: len(entry("a/e.so", APP)) + 300]):
        with pytest.raises(FormatError, match="has a damaged header"):
            found(image_of(broken))
    assert len(found(image_of(layer))) == 2


def test_global_headers_do_not_rename_files() -> None:
    renaming = pax(tarfile.XGLTYPE, path="a/e.so")
    assert list(found(image_of(renaming + entry("b/e.so", APP)))) == ["b/e.so"]
    assert list(found(image_of(tar({"pax": APP}), renaming))) == ["pax"]
    assert list(found(image_of(pax(path="a/e.so") + entry("b/e.so", APP)))) == ["a/e.so"]


def _old_sparse() -> bytes:
    """GNU's own header, which announces more places in the next block, and so on."""
    block = bytearray(header("s", tarfile.GNUTYPE_SPARSE))
    block[482], block[483:495] = 1, b"%011o\0" % (500 << 20)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "layer",
    [
        _old_sparse() + (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0") * 100,
        pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="500000000") + entry("s", b"9999\n1\n1\n"),
        pax(GNU_sparse_size="500000000", GNU_sparse_numblocks="0") + entry("s", b""),
        pax(GNU_sparse_map="1,1", GNU_sparse_size="500000000") + entry("s", b""),
        pax(GNU_sparse_realsize="500000000") + entry("s", b""),
    ],
)
def test_sparse_files_are_refused(layer: bytes) -> None:
    with pytest.raises(FormatError, match="has a sparse file"):
        found(image_of(layer + entry("a/e.so", APP)))


@pytest.mark.parametrize("kind", [pax(comment="x"), entry("././@LongLink", b"name\0", tarfile.GNUTYPE_LONGNAME)])
def test_headers_of_headers_are_refused(kind: bytes) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        found(image_of(kind * 3000 + entry("a/e.so", APP)))


def test_attributes_of_files_are_not_kept() -> None:
    attributes = pax(comment="x" * 1900) + entry("f", b"")
    image = image_of(attributes * 5000)
    tracemalloc.start()
    try:
        found(image)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 << 20


def test_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = oci({"zeros": bytes(20 << 20)})
    monkeypatch.setattr("confcom.appraisal.enclave_file.MAX_UNPACKED", 1 << 20)
    with pytest.raises(FormatError, match="unpacks to more than"):
        found(bomb)
    monkeypatch.undo()
    monkeypatch.setattr("confcom.appraisal.enclave_file.MAX_FILES", 3)
    with pytest.raises(FormatError, match="has more than 3 files"):
        found(saved({f"{number}": b"" for number in range(4)}))
    monkeypatch.undo()
    monkeypatch.setattr("confcom.appraisal.enclave_file.MAX_ENCLAVES", 3)
    with pytest.raises(FormatError, match="has more than 3 signed enclaves"):
        found(saved({"1": APP, "2": APP}, {"3": APP, "4": APP}))
    assert len(found(saved({"1": APP, "2": APP}, {"1": APP, "3": APP}))) == 3


@given(some.data())
def test_any_change_of_an_image_is_read_or_refused(data: some.DataObject) -> None:
    image = bytearray(saved({"app/one.so": APP}))
    for _ in range(data.draw(some.integers(1, 4))):
        image[data.draw(some.integers(0, len(image) - 1))] = data.draw(some.integers(0, 255))
    try:
        found(bytes(image))
    except FormatError:
        return
