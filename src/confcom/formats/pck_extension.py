"""Intel's SGX extension of a PCK certificate (dcap.md §2): which platform, at which TCB."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Self

import msgspec

from confcom.errors import FormatError
from confcom.formats import der
from confcom.formats.der import BOOLEAN, ENUMERATED, INTEGER, OCTET_STRING, OID, SEQUENCE, TAG

PCK_EXTENSION_OID = "1.2.840.113741.1.13.1"

MAX_PCK_EXTENSION = 4096
"""Bytes. Intel's take about 550; the limit bounds what a hostile certificate can make us parse."""

STRUCTURE = "PckExtension"


class SgxType(IntEnum):
    """How the platform protects the memory of enclaves."""

    STANDARD = 0
    SCALABLE = 1
    SCALABLE_WITH_INTEGRITY = 2


class PckTcb(msgspec.Struct, frozen=True):
    """The TCB that the certificate stands for: 16 component SVNs (0 to 255), PCESVN (u16), CPUSVN (16 bytes)."""

    sgx_components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes


class PckConfiguration(msgspec.Struct, frozen=True):
    """How a multi-package platform is set up; only certificates of the Platform CA say so."""

    dynamic_platform: bool
    cached_keys: bool
    smt_enabled: bool | None


class PckExtension(msgspec.Struct, frozen=True):
    """The extension's value. `ppid` 16 bytes, `pce_id` 2 and `fmspc` 6 bytes as in the DER, instance id 16 bytes."""

    ppid: bytes
    tcb: PckTcb
    pce_id: bytes
    fmspc: bytes
    sgx_type: SgxType
    platform_instance_id: bytes | None = None
    configuration: PckConfiguration | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the DER value of the extension: five elements, or seven with what the Platform CA adds, in any order."""
        if len(data) > MAX_PCK_EXTENSION:
            raise FormatError(
                f"{len(data)} bytes are over the limit {MAX_PCK_EXTENSION}", structure=STRUCTURE, field=""
            )
        kind = data[_TCB_PLACE]
        known = _MODELS.get(kind)
        if known is not None:
            model, bytes_of_model = known
            frame = _frame_of(bytes_of_model, model.ppid, model.platform_instance_id)
            values = frame.values(data) if frame else None
            if values is not None:
                ppid, *instance = values
                shared = model.tcb, model.pce_id, model.fmspc, model.sgx_type
                return cls(ppid, *shared, instance[0] if instance else None, model.configuration)
        extension = cls._read(data)
        if len(_MODELS) >= _KINDS:
            _MODELS.clear()
        _MODELS[kind] = extension, data
        return extension

    @classmethod
    def _read(cls, data: bytes) -> Self:
        found = _elements(data, "", len(_PPID), _PROCESSOR_CA, _PLATFORM_CA)
        if found[_SGX_TYPE] not in _SGX_TYPES:
            raise FormatError("is not an ENUMERATED of 0 to 2", structure=STRUCTURE, field="sgx_type")
        platform = len(found) == len(_PLATFORM_CA)
        return cls(
            ppid=_octets(found[_PPID], 16, "ppid"),
            tcb=_tcb(found[_PLATFORM_TCB]),
            pce_id=_octets(found[_PCE_ID], 2, "pce_id"),
            fmspc=_octets(found[_FMSPC], 6, "fmspc"),
            sgx_type=_SGX_TYPES[found[_SGX_TYPE]],
            platform_instance_id=_octets(found[_INSTANCE], 16, "platform_instance_id") if platform else None,
            configuration=_configuration(found[_CONFIGURATION]) if platform else None,
        )

    def __bytes__(self) -> bytes:
        tcb, instance, configuration = self.tcb, self.platform_instance_id, self.configuration
        svns = enumerate((*tcb.sgx_components, tcb.pce_svn), start=1)
        elements = [
            _element("1", der.write(OCTET_STRING, self.ppid)),
            _element(
                "2",
                der.write(
                    SEQUENCE,
                    *(_element(f"2.{number}", der.write_integer(svn)) for number, svn in svns),
                    _element("2.18", der.write(OCTET_STRING, tcb.cpu_svn)),
                ),
            ),
            _element("3", der.write(OCTET_STRING, self.pce_id)),
            _element("4", der.write(OCTET_STRING, self.fmspc)),
            _element("5", der.write(ENUMERATED, bytes((self.sgx_type,)))),
        ]
        if instance is not None:
            elements.append(_element("6", der.write(OCTET_STRING, instance)))
        if configuration is not None:
            flags = (configuration.dynamic_platform, configuration.cached_keys, configuration.smt_enabled)
            known = [der.TRUE if flag else der.FALSE for flag in flags if flag is not None]
            written = (_element(f"7.{number}", der.write(BOOLEAN, flag)) for number, flag in enumerate(known, start=1))
            elements.append(_element("7", der.write(SEQUENCE, *written)))
        return der.write(SEQUENCE, *elements)


# Extensions of platforms of one kind, at one TCB, differ in PPID and instance ID alone.
_KINDS = 64
_MODELS: dict[bytes, tuple[PckExtension, bytes]] = {}
_TCB_PLACE = slice(36, 400)
"""Where Intel writes the SVNs."""


@lru_cache(_KINDS)
def _frame_of(data: bytes, ppid: bytes, instance: bytes | None) -> der.Frame | None:
    return der.Frame.of(data, (ppid,) if instance is None else (ppid, instance))


# Every element is SEQUENCE { OBJECT IDENTIFIER, value }. Intel writes them in the order of their numbers.

_PREFIX = der.oid(PCK_EXTENSION_OID)
_SGX_TYPES = {bytes((ENUMERATED, 1, kind)): kind for kind in SgxType}
_SVN_VALUES = {der.write_integer(number): number for number in range(256)}
_FLAG_VALUES = {der.write(BOOLEAN, value): flag for value, flag in ((der.TRUE, True), (der.FALSE, False))}


def _id(suffix: str) -> bytes:
    """The OID that ends so; all numbers are below 128, one byte each."""
    return der.write(OID, _PREFIX + bytes(map(int, suffix.split("."))))


def _ids(names: Mapping[str, str]) -> dict[bytes, str]:
    return {_id(suffix): name for suffix, name in names.items()}


_PPID, _PLATFORM_TCB, _PCE_ID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = map(_id, "1234567")
_PROCESSOR_CA = _ids({"1": "ppid", "2": "tcb", "3": "pce_id", "4": "fmspc", "5": "sgx_type"})
_PLATFORM_CA = _PROCESSOR_CA | _ids({"6": "platform_instance_id", "7": "configuration"})
_SVNS = _ids({f"2.{number}": f"tcb.sgx_components[{number - 1}]" for number in range(1, 17)} | {"2.17": "tcb.pce_svn"})
_CPU_SVN = _id("2.18")
_TCB = _SVNS | {_CPU_SVN: "tcb.cpu_svn"}
_FLAGS = _ids({"7.1": "configuration.dynamic_platform", "7.2": "configuration.cached_keys"})
_ALL_FLAGS = _FLAGS | _ids({"7.3": "configuration.smt_enabled"})


def _element(suffix: str, value: bytes) -> bytes:
    return der.write(SEQUENCE, _id(suffix), value)


def _elements(data: bytes, field: str, size: int, *allowed: Mapping[bytes, str]) -> dict[bytes, bytes]:
    """The values by OID, of `size` bytes: those of one of the sets (name by OID), each once, in any order."""
    try:
        rows = der.sequence(data, "")
        if set(map(TAG, rows)) - {SEQUENCE}:
            raise der.DerError.at("an element of the extension")
    except der.DerError as error:
        message = f"not the DER of an SGX extension: {error}"
        raise FormatError(message, structure=STRUCTURE, field=field) from error
    values = {row[:size]: row[size:] for _, row, _ in rows}
    if len(rows) == len(values) and values.keys() in [names.keys() for names in allowed]:
        return values
    for identifier, name in allowed[0].items():
        if identifier not in values:
            message = f"OID {der.oid_text(identifier[2:])} is missing"
            raise FormatError(message, structure=STRUCTURE, field=name)
    counts = " or ".join(str(len(names)) for names in allowed)
    raise FormatError(f"has {len(rows)} elements, expected {counts}", structure=STRUCTURE, field=field)


def _content(value: bytes, tag: int, what: str, field: str) -> bytes:
    try:
        return der.content_of(value, tag, "")
    except der.DerError as error:
        raise FormatError(f"is not {what}: {error}", structure=STRUCTURE, field=field) from error


def _octets(value: bytes, size: int, field: str) -> bytes:
    content = _content(value, OCTET_STRING, "an OCTET STRING", field)
    if len(content) != size:
        raise FormatError(f"is {size} bytes, found {len(content)}", structure=STRUCTURE, field=field)
    return content


def _tcb(data: bytes) -> PckTcb:
    """The TCB, SEQUENCE of 18 elements."""
    values = _elements(data, "tcb", len(_CPU_SVN), _TCB)
    try:
        *components, pce_svn = map(_SVN_VALUES.__getitem__, map(values.__getitem__, _SVNS))
    except KeyError:
        *components, pce_svn = [_svn(values[identifier], name) for identifier, name in _SVNS.items()]
    return PckTcb(tuple(components), pce_svn, _octets(values[_CPU_SVN], 16, "tcb.cpu_svn"))


def _svn(value: bytes, field: str) -> int:
    maximum = 0xFFFF if field == "tcb.pce_svn" else 0xFF
    try:
        number = der.integer(_content(value, INTEGER, "an INTEGER", field))
    except der.DerError as error:
        raise FormatError(f"is not an INTEGER: {error}", structure=STRUCTURE, field=field) from error
    if not 0 <= number <= maximum:
        raise FormatError(f"is not an INTEGER between 0 and {maximum}", structure=STRUCTURE, field=field)
    return number


def _configuration(data: bytes) -> PckConfiguration:
    values = _elements(data, "configuration", len(_CPU_SVN), _FLAGS, _ALL_FLAGS)
    dynamic, cached, *smt = [_flag(values[identifier], _ALL_FLAGS[identifier]) for identifier in sorted(values)]
    return PckConfiguration(dynamic, cached, smt[0] if smt else None)


def _flag(value: bytes, field: str) -> bool:
    if value not in _FLAG_VALUES:
        raise FormatError("is not a BOOLEAN", structure=STRUCTURE, field=field)
    return _FLAG_VALUES[value]
