"""Intel's SGX extension of a PCK certificate (dcap.md §2): which platform, at which TCB."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from confcom.errors import FormatError

PCK_EXTENSION_OID = "1.2.840.113741.1.13.1"

MAX_PCK_EXTENSION = 4096
"""Bytes. Intel's take about 550; the limit bounds what a hostile certificate can make us parse."""

STRUCTURE = "PckExtension"


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
        """Read the DER value of the extension: five elements, or seven with what the Platform CA adds."""
        if len(data) > MAX_PCK_EXTENSION:
            raise FormatError(
                f"{len(data)} bytes are over the limit {MAX_PCK_EXTENSION}", structure=STRUCTURE, field=""
            )
        try:
            found = asn1.decode_der(_Extension, data)
        except ValueError as error:
            raise FormatError(f"not the DER of an SGX extension: {error}", structure=STRUCTURE, field="") from error
        if (found.platform_instance_id is None) != (found.configuration is None):
            raise FormatError("has 6 elements, expected 5 or 7", structure=STRUCTURE, field="")
        instance, configuration = found.platform_instance_id, found.configuration
        return cls(
            ppid=_octets(found.ppid, "1", 16, "ppid"),
            tcb=_tcb(found.tcb),
            pce_id=_octets(found.pce_id, "3", 2, "pce_id"),
            fmspc=_octets(found.fmspc, "4", 6, "fmspc"),
            sgx_type=_sgx_type(found.sgx_type),
            platform_instance_id=None if instance is None else _octets(instance, "6", 16, "platform_instance_id"),
            configuration=None if configuration is None else _configuration(configuration),
        )

    def __bytes__(self) -> bytes:
        instance, configuration = self.platform_instance_id, self.configuration
        return asn1.encode_der(
            _Extension(
                ppid=_OctetString(id=_oid("1"), value=self.ppid),
                tcb=_Tcb(id=_oid("2"), value=_svns_of(self.tcb)),
                pce_id=_OctetString(id=_oid("3"), value=self.pce_id),
                fmspc=_OctetString(id=_oid("4"), value=self.fmspc),
                sgx_type=_Enumerated(
                    id=_oid("5"), value=asn1.decode_der(asn1.TLV, bytes((ENUMERATED, 1, self.sgx_type)))
                ),
                platform_instance_id=None if instance is None else _OctetString(id=_oid("6"), value=instance),
                configuration=None if configuration is None else _flags_of(configuration),
            )
        )


# The DER, element for element: every element is SEQUENCE { OBJECT IDENTIFIER, value }, in Intel's order.

ENUMERATED = 0x0A


@asn1.sequence
class _OctetString:
    id: ObjectIdentifier
    value: bytes


@asn1.sequence
class _Integer:
    id: ObjectIdentifier
    value: int


@asn1.sequence
class _Boolean:
    id: ObjectIdentifier
    value: bool


@asn1.sequence
class _Enumerated:
    id: ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _Svns:
    component_01: _Integer
    component_02: _Integer
    component_03: _Integer
    component_04: _Integer
    component_05: _Integer
    component_06: _Integer
    component_07: _Integer
    component_08: _Integer
    component_09: _Integer
    component_10: _Integer
    component_11: _Integer
    component_12: _Integer
    component_13: _Integer
    component_14: _Integer
    component_15: _Integer
    component_16: _Integer
    pce_svn: _Integer
    cpu_svn: _OctetString


@asn1.sequence
class _Tcb:
    id: ObjectIdentifier
    value: _Svns


@asn1.sequence
class _Flags:
    dynamic_platform: _Boolean
    cached_keys: _Boolean
    smt_enabled: _Boolean | None


@asn1.sequence
class _Configuration:
    id: ObjectIdentifier
    value: _Flags


@asn1.sequence
class _Extension:
    ppid: _OctetString
    tcb: _Tcb
    pce_id: _OctetString
    fmspc: _OctetString
    sgx_type: _Enumerated
    platform_instance_id: _OctetString | None
    configuration: _Configuration | None


def _oid(suffix: str) -> ObjectIdentifier:
    return ObjectIdentifier(f"{PCK_EXTENSION_OID}.{suffix}")


def _expect(found: ObjectIdentifier, suffix: str, field: str) -> None:
    if found != _oid(suffix):
        raise FormatError(
            f"expected OID {PCK_EXTENSION_OID}.{suffix}, found {found.dotted_string}", structure=STRUCTURE, field=field
        )


def _octets(found: _OctetString, suffix: str, size: int, field: str) -> bytes:
    _expect(found.id, suffix, field)
    if len(found.value) != size:
        raise FormatError(f"is {size} bytes, found {len(found.value)}", structure=STRUCTURE, field=field)
    return found.value


def _integer(found: _Integer, suffix: str, maximum: int, field: str) -> int:
    _expect(found.id, suffix, field)
    if not 0 <= found.value <= maximum:
        raise FormatError(f"is not between 0 and {maximum}", structure=STRUCTURE, field=field)
    return found.value


def _boolean(found: _Boolean, suffix: str, field: str) -> bool:
    _expect(found.id, suffix, field)
    return found.value


def _tcb(found: _Tcb) -> PckTcb:
    _expect(found.id, "2", "tcb")
    svns = found.value
    return PckTcb(
        tuple(
            _integer(getattr(svns, f"component_{number:02d}"), f"2.{number}", 0xFF, f"tcb.sgx_components[{number - 1}]")
            for number in range(1, 17)
        ),
        _integer(svns.pce_svn, "2.17", 0xFFFF, "tcb.pce_svn"),
        _octets(svns.cpu_svn, "2.18", 16, "tcb.cpu_svn"),
    )


def _svns_of(tcb: PckTcb) -> _Svns:
    components = {
        f"component_{number:02d}": _Integer(id=_oid(f"2.{number}"), value=svn)
        for number, svn in enumerate(tcb.sgx_components, start=1)
    }
    return _Svns(
        **components,
        pce_svn=_Integer(id=_oid("2.17"), value=tcb.pce_svn),
        cpu_svn=_OctetString(id=_oid("2.18"), value=tcb.cpu_svn),
    )


def _sgx_type(found: _Enumerated) -> SgxType:
    _expect(found.id, "5", "sgx_type")
    content = bytes(found.value.data)
    if found.value.tag_bytes != bytes((ENUMERATED,)) or len(content) != 1 or content[0] not in set(SgxType):
        raise FormatError("is not an ENUMERATED of 0 to 2", structure=STRUCTURE, field="sgx_type")
    return SgxType(content[0])


def _configuration(found: _Configuration) -> PckConfiguration:
    _expect(found.id, "7", "configuration")
    flags = found.value
    return PckConfiguration(
        _boolean(flags.dynamic_platform, "7.1", "configuration.dynamic_platform"),
        _boolean(flags.cached_keys, "7.2", "configuration.cached_keys"),
        None if flags.smt_enabled is None else _boolean(flags.smt_enabled, "7.3", "configuration.smt_enabled"),
    )


def _flags_of(configuration: PckConfiguration) -> _Configuration:
    smt = configuration.smt_enabled
    flags = _Flags(
        dynamic_platform=_Boolean(id=_oid("7.1"), value=configuration.dynamic_platform),
        cached_keys=_Boolean(id=_oid("7.2"), value=configuration.cached_keys),
        smt_enabled=None if smt is None else _Boolean(id=_oid("7.3"), value=smt),
    )
    return _Configuration(id=_oid("7"), value=flags)
