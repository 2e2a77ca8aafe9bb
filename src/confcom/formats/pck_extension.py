"""Intel's SGX extension of a PCK certificate (dcap.md §2): which platform, at which TCB."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Self, TypeVar

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from confcom.errors import FormatError

PCK_EXTENSION_OID = "1.2.840.113741.1.13.1"

MAX_PCK_EXTENSION = 4096
"""Bytes. Intel's take about 550; the limit bounds what a hostile certificate can make us parse."""

STRUCTURE = "PckExtension"

T = TypeVar("T")


class SgxType(IntEnum):
    """How the platform protects the memory of enclaves."""

    STANDARD = 0
    SCALABLE = 1
    SCALABLE_WITH_INTEGRITY = 2


@dataclass(frozen=True, slots=True)
class PckTcb:
    """The TCB that the certificate stands for: 16 component SVNs (0 to 255), PCESVN (u16), CPUSVN (16 bytes)."""

    sgx_components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes


@dataclass(frozen=True, slots=True)
class PckConfiguration:
    """How a multi-package platform is set up; only certificates of the Platform CA say so."""

    dynamic_platform: bool
    cached_keys: bool
    smt_enabled: bool | None


@dataclass(frozen=True, slots=True)
class PckExtension:
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
        found = _elements(data, "", _PROCESSOR_CA, _PLATFORM_CA)
        instance, configuration = found.get("6"), found.get("7")
        return cls(
            ppid=_octets(found["1"], 16, "ppid"),
            tcb=_tcb(asn1.encode_der(found["2"])),
            pce_id=_octets(found["3"], 2, "pce_id"),
            fmspc=_octets(found["4"], 6, "fmspc"),
            sgx_type=_sgx_type(found["5"]),
            platform_instance_id=None if instance is None else _octets(instance, 16, "platform_instance_id"),
            configuration=None if configuration is None else _configuration(asn1.encode_der(configuration)),
        )

    def __bytes__(self) -> bytes:
        tcb, instance, configuration = self.tcb, self.platform_instance_id, self.configuration
        svns = (*tcb.sgx_components, tcb.pce_svn)
        elements = [
            _element("1", asn1.encode_der(self.ppid)),
            _element(
                "2",
                wrapped(
                    *(_element(f"2.{number}", asn1.encode_der(svn)) for number, svn in enumerate(svns, start=1)),
                    _element("2.18", asn1.encode_der(tcb.cpu_svn)),
                ),
            ),
            _element("3", asn1.encode_der(self.pce_id)),
            _element("4", asn1.encode_der(self.fmspc)),
            _element("5", bytes((ENUMERATED, 1, self.sgx_type))),
        ]
        if instance is not None:
            elements.append(_element("6", asn1.encode_der(instance)))
        if configuration is not None:
            flags = (configuration.dynamic_platform, configuration.cached_keys, configuration.smt_enabled)
            known = (flag for flag in flags if flag is not None)
            written = (_element(f"7.{number}", asn1.encode_der(flag)) for number, flag in enumerate(known, start=1))
            elements.append(_element("7", wrapped(*written)))
        return wrapped(*elements)


# Every element is SEQUENCE { OBJECT IDENTIFIER, value }. Intel writes them in the order of their numbers.

SEQUENCE = b"\x30"
ENUMERATED = 0x0A

_PROCESSOR_CA = {"1": "ppid", "2": "tcb", "3": "pce_id", "4": "fmspc", "5": "sgx_type"}
_PLATFORM_CA = _PROCESSOR_CA | {"6": "platform_instance_id", "7": "configuration"}
_TCB = {f"2.{number}": f"tcb.sgx_components[{number - 1}]" for number in range(1, 17)}
_TCB |= {"2.17": "tcb.pce_svn", "2.18": "tcb.cpu_svn"}
_FLAGS = {"7.1": "configuration.dynamic_platform", "7.2": "configuration.cached_keys"}
_ALL_FLAGS = _FLAGS | {"7.3": "configuration.smt_enabled"}


@asn1.sequence
class _Element:
    id: ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _Wrapped:
    elements: list[_Element]


@asn1.sequence
class _Svn:
    id: ObjectIdentifier
    value: int | bytes


@asn1.sequence
class _Svns:
    elements: list[_Svn]


# As Intel writes the TCB: 16 component SVNs, PCESVN and CPUSVN, in this order.
_TCB_ORDER = [ObjectIdentifier(f"{PCK_EXTENSION_OID}.2.{number}") for number in range(1, 19)]


def wrapped(*parts: bytes) -> bytes:
    """A SEQUENCE of these elements (DER)."""
    # The encoder gives the length of an OCTET STRING; the tag is another.
    return SEQUENCE + asn1.encode_der(b"".join(parts))[1:]


def _element(suffix: str, value: bytes) -> bytes:
    oid = ObjectIdentifier(f"{PCK_EXTENSION_OID}.{suffix}")
    return asn1.encode_der(_Element(id=oid, value=asn1.decode_der(asn1.TLV, value)))


def _elements(data: bytes, field: str, *allowed: dict[str, str]) -> dict[str, asn1.TLV]:
    """The values by the end of their OID: those of one of the sets (name by end of OID), each once, in any order."""
    try:
        found = asn1.decode_der(_Wrapped, wrapped(data)).elements
    except ValueError as error:
        message = f"not the DER of an SGX extension: {der_reason(error)}"
        raise FormatError(message, structure=STRUCTURE, field=field) from error
    values = {element.id.dotted_string.removeprefix(f"{PCK_EXTENSION_OID}."): element.value for element in found}
    for suffix, name in allowed[0].items():
        if suffix not in values:
            raise FormatError(f"OID {PCK_EXTENSION_OID}.{suffix} is missing", structure=STRUCTURE, field=name)
    if len(found) != len(values) or values.keys() not in [names.keys() for names in allowed]:
        counts = " or ".join(str(len(names)) for names in allowed)
        raise FormatError(f"has {len(found)} elements, expected {counts}", structure=STRUCTURE, field=field)
    return values


def der_reason(error: Exception) -> str:
    """Why pyca cannot read DER: its sentence, or one instead of the inner state of its parser."""
    text = str(error)
    if "ParseError" not in text:
        return text
    if "ShortData" in text:
        return "the bytes end before the DER does: they are cut off, or no DER"
    places = re.findall(r'"\w+::(\w+)"', text)
    return f"the bytes are not its DER{f', at {places[-1]}' if places else ''}"


def _value(found: asn1.TLV, kind: type[T], field: str) -> T:
    try:
        value: T = found.parse(kind)
    except ValueError as error:
        raise FormatError(f"is not {_KINDS[kind]}: {der_reason(error)}", structure=STRUCTURE, field=field) from error
    return value


_KINDS: dict[type, str] = {bytes: "an OCTET STRING", int: "an INTEGER", bool: "a BOOLEAN"}


def _octets(found: asn1.TLV, size: int, field: str) -> bytes:
    value = _value(found, bytes, field)
    if len(value) != size:
        raise FormatError(f"is {size} bytes, found {len(value)}", structure=STRUCTURE, field=field)
    return value


def _integer(found: asn1.TLV, maximum: int, field: str) -> int:
    value = _value(found, int, field)
    if not 0 <= value <= maximum:
        raise FormatError(f"is not between 0 and {maximum}", structure=STRUCTURE, field=field)
    return value


@lru_cache(64)
def _tcb(der: bytes) -> PckTcb:
    """The TCB, SEQUENCE of 18 elements; equal machines of one site have the same."""
    known = _tcb_in_order(der)
    if known is not None:
        return known
    values = _elements(der, "tcb", _TCB)
    return PckTcb(
        tuple(_integer(values[f"2.{number}"], 0xFF, _TCB[f"2.{number}"]) for number in range(1, 17)),
        _integer(values["2.17"], 0xFFFF, _TCB["2.17"]),
        _octets(values["2.18"], 16, _TCB["2.18"]),
    )


def _tcb_in_order(der: bytes) -> PckTcb | None:
    """The TCB as Intel writes it, read in one piece; None for other orders, and for what is malformed."""
    try:
        elements = asn1.decode_der(_Svns, wrapped(der)).elements
    except ValueError:
        return None
    if [element.id for element in elements] != _TCB_ORDER:
        return None
    *components, pce_svn, cpu_svn = (element.value for element in elements)
    if not all(isinstance(svn, int) and 0 <= svn <= 0xFF for svn in components):
        return None
    if not isinstance(pce_svn, int) or not 0 <= pce_svn <= 0xFFFF or not isinstance(cpu_svn, bytes):
        return None
    return PckTcb(tuple(components), pce_svn, cpu_svn) if len(cpu_svn) == 16 else None  # type: ignore[arg-type]


def _sgx_type(found: asn1.TLV) -> SgxType:
    content = bytes(found.data)
    if found.tag_bytes != bytes((ENUMERATED,)) or len(content) != 1 or content[0] not in set(SgxType):
        raise FormatError("is not an ENUMERATED of 0 to 2", structure=STRUCTURE, field="sgx_type")
    return SgxType(content[0])


@lru_cache(16)
def _configuration(der: bytes) -> PckConfiguration:
    values = _elements(der, "configuration", _FLAGS, _ALL_FLAGS)
    dynamic, cached, *smt = (_value(values[suffix], bool, _ALL_FLAGS[suffix]) for suffix in sorted(values))
    return PckConfiguration(dynamic, cached, smt[0] if smt else None)
