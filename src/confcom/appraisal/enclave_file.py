"""Reads who signed an enclave file, and makes the policy that accepts exactly that enclave.

The processor checks the same signature when the enclave starts (EINIT) and reports the hash of its key as MRSIGNER:
a file and a quote with equal MRSIGNER were signed with one key.

In a saved container image (the archive of `docker save`, or one of the OCI's layout), layers are read in their order,
so a file counts as the container sees it: later layers replace and delete earlier ones (whiteouts, OCI image
specification, layer.md). Nothing is unpacked to a disk. An image is hostile: sizes, numbers of files and what layers
unpack to are bounded.
"""

from __future__ import annotations

import gzip
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, Any, BinaryIO, NoReturn, Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from confcom.errors import FormatError, SignatureError
from confcom.formats.sgx import HEADER, HEADER2, SigStruct, find_sigstructs

MAX_ENCLAVE = 512 << 20
"""Bytes of a signed enclave file."""
EXPONENT = 3
"""The only public exponent that EINIT takes."""

SDK_SAMPLE_SIGNER = bytes.fromhex("83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e")
"""MRSIGNER of the key that the samples of Intel's SDK are signed with; the key is public."""

_ADVICE = (
    "Name a signed enclave: the .signed.so of Intel's SDK or EGo, an Open Enclave binary after `oesign sign`, "
    "or Gramine's .sig file."
)


@dataclass(frozen=True, slots=True)
class SignedEnclave:
    """An enclave file's SIGSTRUCT, with a signature that was checked, and its place in the file in bytes."""

    sigstruct: SigStruct
    offset: int

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER, 32 bytes: SHA-256 of the modulus, little-endian as it stands."""
        return sha256(self.sigstruct.modulus).digest()

    @property
    def mr_enclave(self) -> bytes:
        """MRENCLAVE, 32 bytes, as the signer measured it."""
        return self.sigstruct.enclave_hash

    @property
    def debug_only(self) -> bool:
        """Whether the enclave starts in debug mode only: its memory is open wherever it runs."""
        return self.sigstruct.attributes.debug and self.sigstruct.attribute_mask.debug


def read_signed_enclave(data: bytes, *, name: str = "enclave file") -> SignedEnclave:
    """The SIGSTRUCT of an enclave file of any framework; `name` is the file's in errors.

    `FormatError` when there is none, or when there are several different ones; `SignatureError` when what is there
    was not signed with the key that it names.
    """
    places = list(find_sigstructs(data))
    if not places:
        at = data.rfind(HEADER)
        if at >= 0 and len(data) < at + SigStruct.size() and HEADER2.startswith(data[at + 24 : at + 40]):
            raise _refusal(name, f"ends inside its SIGSTRUCT, which begins at byte {at}", "Copy the whole file again.")
        raise _refusal(name, "holds no SIGSTRUCT: this is no enclave, or one that was not signed")
    # From the last to the first: of equal ones the first place counts.
    sound = {bytes(found): SignedEnclave(found, at) for at, found in reversed(places) if _is_signed(found)}
    if not sound:
        at = places[0][0]
        raise SignatureError(
            f"{name}: the SIGSTRUCT at byte {at} was not signed with the key that it names: no processor starts it",
            step="sigstruct-signature",
            expected="a signature by the key in the SIGSTRUCT",
            found="another signature",
            advice="Sign the enclave again; if the file was copied, compare its hash with the original's.",
        )
    if len(sound) > 1:
        builds = ", ".join(sorted(enclave.mr_enclave.hex() for enclave in sound.values()))
        message = f"holds {len(sound)} different signed enclaves (MRENCLAVE {builds})"
        raise _refusal(name, message, "Name one enclave's file.")
    return next(iter(sound.values()))


def policy_text(enclave: SignedEnclave) -> str:
    """A policy file, in TOML, that accepts exactly this enclave; later security versions with the first line gone."""
    body = enclave.sigstruct
    lines = [
        "# This build. Without this line: every build of this signer's product from this security version on.",
        f'mr_enclave = ["{enclave.mr_enclave.hex()}"]',
        "# Who signed it.",
        f'mr_signer = ["{enclave.mr_signer.hex()}"]',
        f"isv_prod_id = {body.isv_prod_id}",
        f"min_isv_svn = {body.isv_svn}",
    ]
    if enclave.mr_signer == SDK_SAMPLE_SIGNER:
        lines.append("# The signer is the sample key of Intel's SDK, which is public: keep the line mr_enclave.")
    if enclave.debug_only:
        lines += [
            "# Signed for debug mode only, which is refused by default: the host reads its memory.",
            "# allow_debug = true",
        ]
    return "\n".join((*lines, ""))


def _is_signed(found: SigStruct) -> bool:
    """PKCS #1 v1.5 with SHA-256 under the 3072-bit key in the struct, exponent 3."""
    modulus = int.from_bytes(found.modulus, "little")
    # Less is not a key of 3072 bits; EINIT does not take it.
    if found.exponent != EXPONENT or modulus.bit_length() != 8 * len(found.modulus) or not modulus & 1:
        return False
    key = rsa.RSAPublicNumbers(EXPONENT, modulus).public_key()
    try:
        key.verify(found.signature[::-1], found.signed_bytes, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _refusal(name: str, message: str, advice: str = _ADVICE) -> FormatError:
    return FormatError(message, structure=name, field="", advice=advice)


MAX_FILES = 200_000
"""Files of one layer."""
MAX_PARTS = 4096
"""Files of the archive."""
MAX_LAYERS = 512
MAX_UNPACKED = 32 << 30
"""Bytes that all layers together unpack to."""
MAX_DOCUMENT = 4 << 20
"""Bytes of a JSON document of the image."""
MAX_NAME = 1 << 20
"""Bytes of a header that holds a long name or attributes; tarfile reads it as a whole."""
MAX_ENCLAVES = 256
"""Signed enclaves of one image; each later file is compared with them."""
MAX_NAMED = 20
"""Enclaves that an error names."""
_GLOBAL = b"G"
_MAGIC = b"ustar"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_Kind = TypeVar("_Kind")
_Members = dict[str, tarfile.TarInfo]
_ALONE = "Save the image of the application alone."
_SAVE = "Save the image with `docker save IMAGE -o FILE`, `podman save`, or `skopeo copy … oci-archive:FILE`."


class _Member(tarfile.TarInfo):
    """A header, refused if it is damaged, sparse, or announces too much to be read along with it.

    Layers have no sparse files: few bytes would stand for any number of zeros, or of places. Global headers become
    entries of an unknown type: tarfile applies them to what follows, containers do not.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header in 512 bytes."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # Zeros end an archive. So does a damaged header, after the first file, if it is left to tarfile.
            if any(buf):
                raise _wrong(f"has a damaged header: {error}", _SAVE) from error
            raise
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse(member.name)
        if not member.isreg() and not member.isdir() and member.size > MAX_NAME:
            raise _wrong(f"has a header of {member.size} bytes", _SAVE)
        if member.type == tarfile.XGLTYPE:
            member.type = _GLOBAL
        return member

    def _proc_gnusparse_10(self, *_: object) -> NoReturn:
        # Its map has no bound; the other forms keep theirs in a header, and are refused in `_bounded`.
        raise _sparse(self.name)


class _Descriptor(msgspec.Struct):
    digest: str
    platform: dict[str, Any] = {}


class _Index(msgspec.Struct):
    """An index of the OCI, or a manifest: which of both has its lists filled."""

    manifests: list[_Descriptor] = []
    layers: list[_Descriptor] = []


class _Saved(msgspec.Struct):
    Layers: list[str]


_SAVED = msgspec.json.Decoder(list[_Saved])
_INDEX = msgspec.json.Decoder(_Index)


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes is a tar archive."""
    return head[257:262] == _MAGIC


def read_image_enclave(stream: BinaryIO, path: str | None = None) -> SignedEnclave:
    """The signed enclave of an image, at this path if it has several.

    `FormatError` if the archive is no image, has no such enclave, or has several and none is named.
    """
    everything = enclaves_of(stream)
    found = {name: one for name, one in everything.items() if isinstance(one, SignedEnclave)}
    if path is not None:
        enclave = everything.get(_plain(path))
        if isinstance(enclave, SignatureError):
            raise enclave
        if enclave is None:
            raise _wrong(f"has no signed enclave at {path}", f"There are: {_names(found)}.")
        return enclave
    if not found:
        for refused in everything.values():
            if isinstance(refused, SignatureError):
                raise refused
        raise _wrong("has no signed enclave in it", "Name the image of the application, as it is deployed.")
    if len({enclave.mr_enclave for enclave in found.values()}) > 1:
        raise _wrong(f"has {len(found)} signed enclaves", f"Name one with --file: {_names(found)}.")
    return next(iter(found.values()))


def enclaves_of(stream: BinaryIO) -> dict[str, SignedEnclave | SignatureError]:
    """Every file of the image that is a signed enclave, by its path without the first slash; `stream` can seek.

    Those with a wrong signature are errors.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as archive:
            members = {member.name.removeprefix("./"): member for member in _bounded(archive, MAX_PARTS)}
            found: dict[str, SignedEnclave | SignatureError] = {}
            left = MAX_UNPACKED
            for name in _layers(archive, members):
                left = _read_layer(_open(archive, members, name), found, left)
            return found
    except (tarfile.TarError, EOFError, OSError, zlib.error, UnicodeError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise _wrong(f"cannot be read: {str(error) or type(error).__name__}", _SAVE) from error


def _layers(archive: tarfile.TarFile, members: _Members) -> list[str]:
    """Names of the layers, the lowest first."""
    if "manifest.json" in members:
        saved = _document(archive, members, "manifest.json", _SAVED)
        if len(saved) != 1:
            raise _wrong(f"holds {len(saved)} images", "Save one image.")
        names: list[str] = saved[0].Layers
    elif "index.json" in members:
        names = [_blob(layer) for layer in _manifest(archive, members, "index.json").layers]
    else:
        raise _wrong("is no image: it has neither manifest.json nor index.json", _SAVE)
    if len(names) > MAX_LAYERS:
        raise _wrong(f"has {len(names)} layers, more than {MAX_LAYERS}", _SAVE)
    return names


def _manifest(archive: tarfile.TarFile, members: _Members, name: str) -> _Index:
    """The manifest behind an index; of several platforms, that of linux/amd64."""
    for _ in range(3):
        found = _document(archive, members, name, _INDEX)
        if not found.manifests:
            return found
        wanted = [one for one in found.manifests if one.platform.get("architecture", "amd64") == "amd64"]
        if len(wanted) != 1:
            raise _wrong(f"holds {len(wanted)} images for amd64", "Save one image.")
        name = _blob(wanted[0])
    raise _wrong("has an index in an index in an index", _SAVE)


def _blob(descriptor: _Descriptor) -> str:
    return f"blobs/{descriptor.digest.replace(':', '/')}"


def _document(archive: tarfile.TarFile, members: _Members, name: str, decoder: msgspec.json.Decoder[_Kind]) -> _Kind:
    data = _open(archive, members, name).read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise _wrong(f"has a document {name} of more than {MAX_DOCUMENT} bytes", _SAVE)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(f"has a malformed {name}: {error}", _SAVE) from error


def _open(archive: tarfile.TarFile, members: _Members, name: str) -> IO[bytes]:
    member = members.get(name)
    opened = archive.extractfile(member) if member is not None and member.isreg() else None
    if opened is None:
        raise _wrong(f"lacks {name}, which it names", _SAVE)
    return opened


def _read_layer(packed: IO[bytes], found: dict[str, SignedEnclave | SignatureError], left: int) -> int:
    """Put the enclaves of a layer over those of the layers below it; returns what may still be unpacked, in bytes."""
    head = packed.read(4)
    packed.seek(0)
    if head == _ZSTD:
        raise _wrong("has layers packed with zstd", "Save it with layers that are not: `docker save`, `podman save`.")
    limited = _Limited(gzip.GzipFile(fileobj=packed) if head.startswith(_GZIP) else packed, left)
    below = set(found)
    with tarfile.open(fileobj=limited, mode="r|", tarinfo=_Member) as layer:  # type: ignore[call-overload]  # it reads, and no more
        for member in _bounded(layer, MAX_FILES):
            path = _plain(member.name)
            folder, name = posixpath.split(path)
            if name == _OPAQUE:
                _remove(found, folder, below, itself=False)
            elif name.startswith(_WHITEOUT):
                _remove(found, posixpath.join(folder, name.removeprefix(_WHITEOUT)), below, itself=True)
            elif member.type != _GLOBAL:
                linked = found.get(_plain(member.linkname)) if member.islnk() else None
                # A file in the place of a folder takes away what the folder holds, and a folder the file.
                _remove(found, path, set(found) if not member.isdir() else {path}, itself=True)
                enclave = _enclave(layer, member) if member.isreg() else linked
                if enclave is not None:
                    found[path] = enclave
                    below.discard(path)
                if len(found) > MAX_ENCLAVES:
                    raise _wrong(f"has more than {MAX_ENCLAVES} signed enclaves", _ALONE)
    return limited.left


class _Limited:
    """A stream that ends with an error after so many bytes."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _wrong(f"unpacks to more than {MAX_UNPACKED} bytes", _ALONE)
        return data


def _bounded(archive: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(archive):
        if number >= most:
            raise _wrong(f"has more than {most} files", _ALONE)
        if any(name.startswith("GNU.sparse.") for name in member.pax_headers):
            raise _sparse(member.name)
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all of them, with their attributes
        yield member


def _sparse(name: str) -> FormatError:
    return _wrong(f"has a sparse file {name[:200]!r}", _SAVE)


def _remove(found: dict[str, Any], path: str, below: set[str], *, itself: bool) -> None:
    """Forget what lower layers have at a path and under it."""
    for one in below:
        if (itself and one == path) or one.startswith(f"{path}/" if path else ""):
            found.pop(one, None)


def _enclave(layer: tarfile.TarFile, member: tarfile.TarInfo) -> SignedEnclave | SignatureError | None:
    if not len(HEADER) <= member.size <= MAX_ENCLAVE:
        return None
    opened = layer.extractfile(member)
    data = b"" if opened is None else opened.read()
    if HEADER not in data:
        return None
    try:
        return read_signed_enclave(data, name=f"/{_plain(member.name)} of the image")
    except SignatureError as error:
        return error
    except FormatError:
        return None  # signs its own enclaves, such as a signing tool, or is none


def _plain(path: str) -> str:
    return posixpath.normpath(f"/{path}").lstrip("/")


def _names(found: dict[str, SignedEnclave]) -> str:
    shown = sorted(found)[:MAX_NAMED]
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return (", ".join(f"/{path}" for path in shown) or "none") + more


def _wrong(message: str, advice: str) -> FormatError:
    return FormatError(message, structure="image", field="", advice=advice)
