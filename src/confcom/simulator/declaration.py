"""What a developer declares about a simulated enclave: the identity that hardware would have measured.

Nothing is loaded or run inside; the declaration alone decides what reports say. A file form (TOML or JSON) lets a
command line name one (a signed enclave file, which has a SIGSTRUCT, stands for itself):

    enclave = "payment-service"      # or mr_enclave = "64 hex digits"
    signer = "Contoso"               # or mr_signer = "64 hex digits"
    isv_prod_id = 1
    isv_svn = 2
    debug = false
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from confcom.appraisal.enclave_file import MAX_ENCLAVE, read_signed_enclave
from confcom.errors import ConfigError, FormatError
from confcom.formats.arguments import explain_settings, without_bom
from confcom.formats.sgx import AttributeFlags, Attributes, ReportBody, is_sigstruct
from confcom.input_file import read_bounded

MAX_DECLARATION = 64 * 1024
"""Bytes of a declaration file."""

XFRM_AVX512 = 0xE7
"""x87, SSE, AVX and AVX-512 state: what most real enclaves run with."""

_STANDARD_FLAGS = AttributeFlags.INIT | AttributeFlags.MODE64BIT
STANDARD_ATTRIBUTES = Attributes(int(_STANDARD_FLAGS), XFRM_AVX512)


def measure(name: str | bytes) -> bytes:
    """A stand-in for MRENCLAVE or MRSIGNER, 32 bytes: the hash of a name, or of an enclave image's bytes."""
    content = name.encode() if isinstance(name, str) else name
    return hashlib.sha256(b"confcom simulated measurement\0" + content).digest()


@dataclass(frozen=True, slots=True)
class EnclaveDeclaration:
    """The identity of an enclave. `config_id`, `isv_ext_prod_id`, `isv_family_id` and `config_svn` need KSS."""

    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int = 0
    isv_svn: int = 0
    attributes: Attributes = STANDARD_ATTRIBUTES
    misc_select: int = 0
    config_id: bytes = bytes(64)
    config_svn: int = 0
    isv_ext_prod_id: bytes = bytes(16)
    isv_family_id: bytes = bytes(16)

    def __post_init__(self) -> None:
        for field, bits in (("isv_prod_id", 16), ("isv_svn", 16), ("config_svn", 16), ("misc_select", 32)):
            if not 0 <= getattr(self, field) < 1 << bits:
                raise _refusal(field, f"is a number of 0 to {(1 << bits) - 1}")
        bytes(self.report_body(bytes(16), bytes(64)))  # the record checks the sizes of the rest
        flags = self.attributes.flags
        if not flags & AttributeFlags.INIT:
            raise _refusal("attributes", "an initialized enclave has INIT (bit 0) set")
        kss = any(self.config_id) or self.config_svn or any(self.isv_ext_prod_id) or any(self.isv_family_id)
        if kss and not flags & AttributeFlags.KSS:
            raise _refusal("attributes", "CONFIGID, CONFIGSVN, ISVEXTPRODID and ISVFAMILYID need KSS (bit 7)")

    @classmethod
    def from_names(
        cls, enclave: str, signer: str = "", *, isv_prod_id: int = 1, isv_svn: int = 1, debug: bool = False
    ) -> Self:
        """An enclave known by names: the same names give the same measurements everywhere."""
        flags = _STANDARD_FLAGS | (AttributeFlags.DEBUG if debug else AttributeFlags(0))
        return cls(
            mr_enclave=measure(f"enclave {enclave}"),
            mr_signer=measure(f"signer {signer or enclave}"),
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            attributes=Attributes(int(flags), XFRM_AVX512),
        )

    @classmethod
    def of_signed_enclave(cls, data: bytes, *, name: str) -> Self:
        """The identity that EINIT gives the enclave of a signed file: nothing of it is loaded or run."""
        signed = read_signed_enclave(data, name=name)
        body = signed.sigstruct
        return cls(
            mr_enclave=signed.mr_enclave,
            mr_signer=signed.mr_signer,
            isv_prod_id=body.isv_prod_id,
            isv_svn=body.isv_svn,
            attributes=Attributes(body.attributes.flags | AttributeFlags.INIT, body.attributes.xfrm),
            misc_select=body.misc_select,
            isv_ext_prod_id=body.isv_ext_prod_id,
            isv_family_id=body.isv_family_id,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a declaration file (TOML, or JSON by its suffix) or a signed enclave file.

        Every mistake is an error that names the file: `ConfigError`, for an enclave file `FormatError` and
        `SignatureError`.
        """
        content = _read(path)
        if content.startswith(b"\x7fELF") or is_sigstruct(content):
            return cls.of_signed_enclave(content, name=f"the enclave file {path}")
        return cls.of_document(_read_document(path, content), str(path))

    @classmethod
    def of_document(cls, document: object, where: str) -> Self:
        """The identity in the keys and values of a declaration file; a `ConfigError` names `where`."""
        try:
            return cls(**msgspec.convert(document, _Form).fields())
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {explain_settings(error, _Form)}", advice=_ADVICE) from error
        except (FormatError, ValueError) as error:
            raise ConfigError(f"{where}: {error}", advice=_ADVICE) from error

    def report_body(self, cpu_svn: bytes, report_data: bytes) -> ReportBody:
        """The 384 bytes that EREPORT would MAC for this enclave."""
        return ReportBody(
            cpu_svn=cpu_svn,
            misc_select=self.misc_select,
            reserved1=bytes(12),
            isv_ext_prod_id=self.isv_ext_prod_id,
            attributes=self.attributes,
            mr_enclave=self.mr_enclave,
            reserved2=bytes(32),
            mr_signer=self.mr_signer,
            reserved3=bytes(32),
            config_id=self.config_id,
            isv_prod_id=self.isv_prod_id,
            isv_svn=self.isv_svn,
            config_svn=self.config_svn,
            reserved4=bytes(42),
            isv_family_id=self.isv_family_id,
            report_data=report_data,
        )


_ADVICE = 'Name the enclave (`enclave = "NAME"` or `mr_enclave = "64 HEX DIGITS"`), its signer, and its numbers.'


class _Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The file form."""

    enclave: str | None = None
    mr_enclave: str | None = None
    signer: str | None = None
    mr_signer: str | None = None
    isv_prod_id: int = 0
    isv_svn: int = 0
    debug: bool = False
    misc_select: int = 0
    config_id: str = ""
    config_svn: int = 0
    isv_ext_prod_id: str = ""
    isv_family_id: str = ""

    def fields(self) -> dict[str, Any]:
        kss = self.config_id or self.config_svn or self.isv_ext_prod_id or self.isv_family_id
        flags = _STANDARD_FLAGS
        flags |= AttributeFlags.DEBUG if self.debug else AttributeFlags(0)
        flags |= AttributeFlags.KSS if kss else AttributeFlags(0)
        signer = self.signer if self.signer or self.mr_signer else self.enclave
        return {
            "mr_enclave": _measurement("enclave", self.enclave, self.mr_enclave),
            "mr_signer": _measurement("signer", signer, self.mr_signer),
            "isv_prod_id": self.isv_prod_id,
            "isv_svn": self.isv_svn,
            "attributes": Attributes(int(flags), XFRM_AVX512),
            "misc_select": self.misc_select,
            "config_id": _padded("config_id", self.config_id, 64),
            "config_svn": self.config_svn,
            "isv_ext_prod_id": _padded("isv_ext_prod_id", self.isv_ext_prod_id, 16),
            "isv_family_id": _padded("isv_family_id", self.isv_family_id, 16),
        }


def _measurement(what: str, name: str | None, digits: str | None) -> bytes:
    if (name is None) == (digits is None):
        raise _refusal(what, f"give one of {what} (a name) and mr_{what} (64 hex digits)")
    return measure(f"{what} {name}") if digits is None else _padded(f"mr_{what}", digits, 32, exact=True)


def _padded(field: str, digits: str, size: int, *, exact: bool = False) -> bytes:
    try:
        value = bytes.fromhex(digits)
    except ValueError as error:
        raise _refusal(field, "is not hexadecimal") from error
    if len(value) > size or (exact and len(value) != size):
        raise _refusal(field, f"has {size} bytes, found {len(value)}")
    return value.ljust(size, b"\0")


def _refusal(field: str, message: str) -> FormatError:
    return FormatError(message, structure="EnclaveDeclaration", field=field)


def _read(path: Path) -> bytes:
    try:
        content = read_bounded(path, MAX_ENCLAVE)
    except OSError as error:
        raise ConfigError(f"cannot read the enclave declaration {path}: {error.strerror}") from error
    if len(content) > MAX_ENCLAVE:
        raise ConfigError(f"{path} is over {MAX_ENCLAVE} bytes; this is no enclave", advice=_ADVICE)
    return content


def _read_document(path: Path, content: bytes) -> object:
    if len(content) > MAX_DECLARATION:
        raise ConfigError(f"{path} is over {MAX_DECLARATION} bytes; this is no enclave declaration", advice=_ADVICE)
    try:
        content = without_bom(content)
        document: object = json.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is neither TOML nor JSON: {error}", advice=_ADVICE) from error
    return document
