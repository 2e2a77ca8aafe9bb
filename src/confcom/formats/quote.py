"""Quotes, versions 3, 4 and 5: header, report body, signature section with its certification data.

Layouts: `sgx_quote_3.h`, `sgx_quote_4.h`, `sgx_quote_5.h` of Intel's DCAP. Integers are little-endian; signatures and
public keys are raw big-endian pairs (r‖s, x‖y; 32 + 32 bytes).

Certification data ties the QE report to the platform's PCK key: type u16, size u32, data (Intel SGX ECDSA
QuoteLibReference, "QE Certification Data").

What follows the signature section is kept as `trailing`: attesters hand out padded buffers, and no verifier reads it.
Inside the signature section every byte must be accounted for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Self, TypeAlias

import msgspec

from confcom.errors import FormatError
from confcom.formats.arguments import checked_bytes
from confcom.formats.codec import U16, U32, Cursor, Record, raw
from confcom.formats.sgx import ReportBody, TdReportBody, TdReportBody10, TdReportBody15, TdReportBody15Ex


class TeeType(IntEnum):
    """`tee_type` of the header."""

    SGX = 0
    TDX = 0x81


# Members of enumerations are looked up once: Python 3.11 calls a function for each access.
_SGX, _TDX = TeeType

MAX_CERTIFICATION_DATA = 128 * 1024
"""Bytes, as many as of a quote: type 6 holds a chain and authentication data, which alone may have 65,535. Real chains
take 3.5 to 3.7 kB, Intel's libraries stop at 12,294."""


class CertificationDataType(IntEnum):
    """The types of Intel's table."""

    PPID_CLEARTEXT = 1
    PPID_ENCRYPTED_RSA_2048 = 2
    PPID_ENCRYPTED_RSA_3072 = 3
    PCK_CERTIFICATE = 4
    PCK_CERTIFICATE_CHAIN = 5
    QE_REPORT = 6
    PLATFORM_MANIFEST = 7


_ENTRY = struct.Struct("<HI")
"""Type and size of an entry."""
_QE_REPORT = struct.Struct("<384s64sH")
"""Report, signature over it, and size of the authentication data."""
_TYPES = {kind.value: kind for kind in CertificationDataType}


@dataclass(frozen=True, slots=True)
class PpidCleartext(Record):
    """Type 1, 36 bytes: which PCK certificate to ask for."""

    ppid: Annotated[bytes, raw(16)]
    cpu_svn: Annotated[bytes, raw(16)]
    pce_svn: Annotated[int, U16]
    pce_id: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class PpidEncryptedRsa2048(Record):
    """Type 2, 276 bytes: the PPID encrypted with RSA-2048-OAEP."""

    encrypted_ppid: Annotated[bytes, raw(256)]
    cpu_svn: Annotated[bytes, raw(16)]
    pce_svn: Annotated[int, U16]
    pce_id: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class PpidEncryptedRsa3072(Record):
    """Type 3, 404 bytes: the PPID encrypted with RSA-3072-OAEP."""

    encrypted_ppid: Annotated[bytes, raw(384)]
    cpu_svn: Annotated[bytes, raw(16)]
    pce_svn: Annotated[int, U16]
    pce_id: Annotated[int, U16]


Ppid: TypeAlias = PpidCleartext | PpidEncryptedRsa2048 | PpidEncryptedRsa3072
PPID_TYPES: dict[CertificationDataType, type[Ppid]] = {
    CertificationDataType.PPID_CLEARTEXT: PpidCleartext,
    CertificationDataType.PPID_ENCRYPTED_RSA_2048: PpidEncryptedRsa2048,
    CertificationDataType.PPID_ENCRYPTED_RSA_3072: PpidEncryptedRsa3072,
}
"""What only names the platform: the PCK certificate comes from elsewhere."""


class CertificationData(msgspec.Struct, frozen=True):
    """One entry: its type and its bytes (128 KiB at the most), uninterpreted."""

    type: CertificationDataType
    data: bytes

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read an entry where the cursor stands."""
        start = cursor.offset
        number, size = cursor.unpack(_ENTRY, "certification_data.type", "certification_data.size")
        if number not in _TYPES:
            raise cursor.error(f"unknown type {number}, expected 1 to 7", "certification_data.type", start)
        if size > MAX_CERTIFICATION_DATA:
            message = f"{size} is over the limit {MAX_CERTIFICATION_DATA}"
            raise cursor.error(message, "certification_data.size", start + 2)
        return cls(_TYPES[number], cursor.take(size, "certification_data.data"))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an entry that takes all of `data`."""
        cursor = Cursor(data, "CertificationData")
        entry = cls.read(cursor)
        cursor.finish()
        return entry

    def __bytes__(self) -> bytes:
        return self.type.to_bytes(2, "little") + len(self.data).to_bytes(4, "little") + self.data

    def ppid(self) -> Ppid:
        """The platform's identifiers, for the types 1 to 3."""
        kind = PPID_TYPES.get(self.type)
        if kind is None:
            raise FormatError(f"type {self.type} holds no PPID", structure="CertificationData", field="type")
        if len(self.data) != kind.size():
            message = f"type {self.type} has {kind.size()} bytes, found {len(self.data)}"
            raise FormatError(message, structure="Quote", field="certification_data.size")
        return kind.parse(self.data)


class QeReportCertification(msgspec.Struct, frozen=True):
    """Type 6, the outer entry of quotes v4 and v5: the QE's report, its signature, and the inner entry.

    The signature is r‖s (64 bytes) by the PCK key over the 384 bytes of the report; the authentication data has a size
    of 16 bits before it.
    """

    qe_report: ReportBody
    qe_report_signature: bytes
    qe_authentication_data: bytes
    certification_data: CertificationData

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the content of a type 6 entry; every byte must be accounted for."""
        cursor = Cursor(data, "QeReportCertification")
        certification = cls.read(cursor)
        cursor.finish()
        return certification

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read QE report, signature, authentication data and certification data where the cursor stands."""
        report, signature, size = cursor.unpack(
            _QE_REPORT, "qe_report", "qe_report_signature", "qe_authentication_data.size"
        )
        authentication = cursor.take(size, "qe_authentication_data")
        entry = CertificationData.read(cursor)
        return cls(ReportBody.parse(report), signature, authentication, entry)

    def __bytes__(self) -> bytes:
        return b"".join(
            (
                bytes(self.qe_report),
                self.qe_report_signature,
                len(self.qe_authentication_data).to_bytes(2, "little"),
                self.qe_authentication_data,
                bytes(self.certification_data),
            )
        )


class QuoteSignature(msgspec.Struct, frozen=True):
    """The signature section: the same content in every version, only nested differently.

    `signature` is r‖s over the signed bytes by `attestation_key` (x‖y); `certification` holds the QE report that
    vouches for that key, the PCK key's signature over it, and the PCK certificate chain.
    """

    signature: bytes
    attestation_key: bytes
    certification: QeReportCertification


_SIGNATURE = struct.Struct("<64s64s")
"""How every signature section begins."""

# Version 3 (SGX only): body at 48, signature section at 436, the QE report flat inside it.

# Types 6 and 7 belong to versions 4 and 5.
_LAST_TYPE, _OUTER_TYPE = CertificationDataType.PCK_CERTIFICATE_CHAIN, CertificationDataType.QE_REPORT


def _read_body(cursor: Cursor, tee: TeeType) -> ReportBody | TdReportBody:
    """Read the report body of versions 3 and 4: 384 bytes for SGX, 584 for TDX."""
    return (ReportBody if tee is _SGX else TdReportBody10).read(cursor, "body")


def _read_signature_v3(cursor: Cursor) -> QuoteSignature:
    """Read the signature section, to its end."""
    signature, attestation_key = cursor.unpack(_SIGNATURE, "signature", "attestation_key")
    certification = QeReportCertification.read(cursor)
    cursor.finish("signature_data")
    entry = certification.certification_data
    if entry.type > _LAST_TYPE:
        at = cursor.offset - len(bytes(entry))
        raise cursor.error(f"type {entry.type} does not exist in version 3", "certification_data.type", at)
    return QuoteSignature(signature, attestation_key, certification)


def _write_signature_v3(signature: QuoteSignature) -> bytes:
    """Write the signature section."""
    return signature.signature + signature.attestation_key + bytes(signature.certification)


# Version 4 (SGX and TDX): the QE report moves into certification data of type 6.


def _read_signature_v4(cursor: Cursor) -> QuoteSignature:
    """Read the signature section of versions 4 and 5, to its end."""
    signature, attestation_key = cursor.unpack(_SIGNATURE, "signature", "attestation_key")
    outer_at = cursor.offset
    outer = CertificationData.read(cursor)
    cursor.finish("signature_data")
    if outer.type is not _OUTER_TYPE:
        raise cursor.error(f"the outer type must be 6, is {outer.type}", "certification_data.type", outer_at)
    inner = Cursor(cursor.data, "Quote", outer_at + 6, cursor.offset)
    certification = QeReportCertification.read(inner)
    inner.finish("certification_data")
    entry = certification.certification_data
    if entry.type is _OUTER_TYPE:
        at = inner.offset - len(bytes(entry))
        raise inner.error("type 6 cannot stand inside type 6", "certification_data.certification_data.type", at)
    return QuoteSignature(signature, attestation_key, certification)


def _write_signature_v4(signature: QuoteSignature) -> bytes:
    """Write the signature section of versions 4 and 5."""
    outer = CertificationData(CertificationDataType.QE_REPORT, bytes(signature.certification))
    return signature.signature + signature.attestation_key + bytes(outer)


# Version 5: a body descriptor (type u16, size u32) precedes the body and is signed with it.


BODY_TYPES: dict[int, type[ReportBody] | type[TdReportBody10] | type[TdReportBody15] | type[TdReportBody15Ex]] = {
    1: ReportBody,
    2: TdReportBody10,
    3: TdReportBody15,
    4: TdReportBody15Ex,
}
_NUMBERS: dict[type, int] = {kind: number for number, kind in BODY_TYPES.items()}


def _read_body_v5(cursor: Cursor, tee: TeeType) -> ReportBody | TdReportBody:
    """Read descriptor and body: type and size must belong together, and to the header's TEE."""
    start = cursor.offset
    number = cursor.u16("body.type")
    kind = BODY_TYPES.get(number)
    if kind is None:
        raise cursor.error(f"unknown body type {number}, expected 1 to 4", "body.type", start)
    if (kind is ReportBody) != (tee is _SGX):
        raise cursor.error(f"body type {number} does not fit TEE type {tee:#x}", "body.type", start)
    size = cursor.u32("body.size")
    if size != kind.size():
        raise cursor.error(f"body type {number} has {kind.size()} bytes, found {size}", "body.size", start + 2)
    return kind.read(cursor, "body")


def _write_body_v5(body: ReportBody | TdReportBody) -> bytes:
    """Write descriptor and body."""
    content = bytes(body)
    return _NUMBERS[type(body)].to_bytes(2, "little") + len(content).to_bytes(4, "little") + content


INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
HEADER_SIZE = 48
_EPID_VERSIONS = (1, 2)
_EPID_HEAD = 436
"""Bytes of `sgx_quote_t` up to its signature: header, report body, size of the signature."""
_SIMULATED_EPID = bytes.fromhex("ef00ef00efefefef")
"""Bytes 8 to 15 (`qe_svn`, `pce_svn`, `xeid`) of what `-lsgx_quote_ex_sim` makes (Intel SDK, `quoting_sim.cpp`)."""
MAX_QUOTE = 128 * 1024
"""Bytes, with trailing padding. Real quotes take about 5 kB, padded ones 8 kB."""


class AttestationKeyType(IntEnum):
    """The algorithms that Intel's table names; only the first is in use."""

    ECDSA_P256 = 2
    ECDSA_P384 = 3


@dataclass(frozen=True, slots=True)
class QuoteHeader(Record):
    """The first 48 bytes. `qe_svn` and `pce_svn` are filled in v3 only; they are signed, but decide nothing."""

    version: Annotated[int, U16]
    attestation_key_type: Annotated[int, U16]
    tee_type: Annotated[int, U32]
    qe_svn: Annotated[int, U16]
    pce_svn: Annotated[int, U16]
    qe_vendor_id: Annotated[bytes, raw(16)]
    user_data: Annotated[bytes, raw(20)]


# Layouts are computed now, not with the first quote.
for _record in (QuoteHeader, *BODY_TYPES.values()):
    _record.size()
_VERSION = QuoteHeader.place("version")


class QuoteVersion(msgspec.Struct, frozen=True):
    """How one version lays out what follows the header."""

    read_body: Callable[[Cursor, TeeType], ReportBody | TdReportBody]
    write_body: Callable[[ReportBody | TdReportBody], bytes]
    read_signature: Callable[[Cursor], QuoteSignature]
    write_signature: Callable[[QuoteSignature], bytes]


QUOTE_VERSIONS: dict[int, QuoteVersion] = {
    3: QuoteVersion(_read_body, bytes, _read_signature_v3, _write_signature_v3),
    4: QuoteVersion(_read_body, bytes, _read_signature_v4, _write_signature_v4),
    5: QuoteVersion(_read_body_v5, _write_body_v5, _read_signature_v4, _write_signature_v4),
}


class Quote(msgspec.Struct, frozen=True):
    """A quote of any version."""

    header: QuoteHeader
    body: ReportBody | TdReportBody
    signature: QuoteSignature
    trailing: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a quote; `FormatError` names the field that is wrong and where it stands."""
        if len(checked_bytes(data, "quote")) > MAX_QUOTE:
            raise FormatError(f"{len(data)} bytes are over the limit {MAX_QUOTE}", structure="Quote", field="")
        cursor = Cursor(data, "Quote")
        header = QuoteHeader.read(cursor, "header")
        version, tee = _check_header(header)
        body = version.read_body(cursor, tee)
        section = cursor.part(cursor.u32("signature_data.size"), "signature_data")
        return cls(header, body, version.read_signature(section), cursor.rest())

    def __repr__(self) -> str:
        return f"<Quote {self.tee.name} v{self.header.version}, report data {self.report_data.hex()}>"

    def __bytes__(self) -> bytes:
        section = self._version.write_signature(self.signature)
        return b"".join((self.signed_bytes, len(section).to_bytes(4, "little"), section, self.trailing))

    def similar(self, data: bytes) -> Self:
        """Read a quote that `shared_part` finds equal to this one: report data and signature are its own."""
        end = HEADER_SIZE + len(bytes(self.body))
        body = type(self.body).parse(data[HEADER_SIZE:end])
        held, signature = self.signature, data[end + 4 : end + 68]
        section = QuoteSignature(signature, held.attestation_key, held.certification)
        return type(self)(self.header, body, section, self.trailing)

    @property
    def _version(self) -> QuoteVersion:
        return QUOTE_VERSIONS[int.from_bytes(bytes(self.header)[_VERSION], "little")]

    @property
    def signed_bytes(self) -> bytes:
        """What the attestation key signs: header and body, in v5 with the body's type and size between them."""
        return bytes(self.header) + self._version.write_body(self.body)

    @property
    def size(self) -> int:
        """Bytes of the quote itself, without what trails it."""
        return len(bytes(self)) - len(self.trailing)

    @property
    def tee(self) -> TeeType:
        """SGX or TDX."""
        return _SGX if isinstance(self.body, ReportBody) else _TDX

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave or TD chose."""
        return self.body.report_data


def is_epid(data: bytes) -> bool:
    """Whether these bytes are an EPID quote (`sgx_quote_t`): version 1 or 2, its signature up to the end.

    Those of Intel's simulated library are recognised in buffers that are longer too.
    """
    if data[:2] == b"\2\0" and data[8:16] == _SIMULATED_EPID:
        return True
    version, kind = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    size = int.from_bytes(data[_EPID_HEAD - 4 : _EPID_HEAD], "little")
    return version in _EPID_VERSIONS and kind in (0, 1) and size > 0 and len(data) == _EPID_HEAD + size


# Version, key type and TEE as they begin a header, for those that go together.
_LAYOUTS = {
    struct.pack("<HHI", number, AttestationKeyType.ECDSA_P256, tee): (layout, tee)
    for number, layout in QUOTE_VERSIONS.items()
    for tee in TeeType
    if number > 3 or tee is TeeType.SGX
}


# Where their body ends, and its report data with it. TDX 1.5 has fields behind the report data.
_ENDS = {begin: HEADER_SIZE + (ReportBody if tee is _SGX else TdReportBody10).size()
         for begin, (layout, tee) in _LAYOUTS.items() if layout is not QUOTE_VERSIONS[5]}  # fmt: skip
MAX_SHARED = 16 * 1024
"""Bytes of a quote of which `shared_part` gives something; Intel's have about 5,000, and padding may fill memory."""


def shared_part(data: bytes) -> bytes:
    """What quotes that one QE made of one enclave or TD share: all but report data and signature (64 bytes each).

    Empty for version 5, for more than 16 KiB, and for what does not begin as a quote.
    """
    end = _ENDS.get(data[:8], 0)
    if not end or len(data) > MAX_SHARED:
        return b""
    return data[: end - 64] + data[end : end + 4] + data[end + 68 :]


def _check_header(header: QuoteHeader) -> tuple[QuoteVersion, TeeType]:
    raw_header = bytes(header)
    known = _LAYOUTS.get(raw_header[:8])
    if known is not None and raw_header[12:28] == INTEL_QE_VENDOR_ID:
        return known
    raise _header_error(header)


def _header_error(header: QuoteHeader) -> FormatError:
    def refuse(field: str, offset: int, message: str) -> FormatError:
        return FormatError(message, structure="Quote", field=f"header.{field}", offset=offset)

    if header.version == 2 and bytes(header)[8:16] == _SIMULATED_EPID:
        return FormatError(
            "this quote is a fake of Intel's library for the simulation mode (-lsgx_quote_ex_sim), which signs nothing",
            structure="Quote",
            field="header.version",
            offset=0,
            advice="Link with -lsgx_quote_ex, or preload it (LD_PRELOAD=libsgx_quote_ex.so.1): then the quote helper "
            "makes the quote, and on a simulated platform it takes reports of the simulation mode.",
        )
    if header.version in _EPID_VERSIONS:
        return FormatError(
            f"version {header.version} is an EPID quote, which only Intel's attestation service (IAS) could verify",
            structure="Quote",
            field="header.version",
            offset=0,
            advice="Intel ended EPID in 2025: let the attester make ECDSA quotes (DCAP) of version 3 to 5.",
        )
    if header.version not in QUOTE_VERSIONS:
        known = ", ".join(map(str, QUOTE_VERSIONS))
        return refuse("version", 0, f"unknown quote version {header.version}, expected {known}")
    if header.attestation_key_type != AttestationKeyType.ECDSA_P256:
        return refuse("attestation_key_type", 2, f"expected 2 (ECDSA P-256), found {header.attestation_key_type}")
    if header.tee_type not in (TeeType.SGX, TeeType.TDX):
        return refuse("tee_type", 4, f"expected 0 (SGX) or 0x81 (TDX), found {header.tee_type:#x}")
    if header.version == 3 and header.tee_type != TeeType.SGX:
        return refuse("tee_type", 4, f"version 3 knows SGX (0) only, found {header.tee_type:#x}")
    return refuse("qe_vendor_id", 12, f"expected Intel's {INTEL_QE_VENDOR_ID.hex()}, found {header.qe_vendor_id.hex()}")
