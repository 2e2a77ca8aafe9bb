"""QE certification data: what ties the QE report to the platform's PCK key.

Layout: Intel SGX ECDSA QuoteLibReference, "QE Certification Data"; type u16, size u32, data; little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Self

import msgspec

from confcom.errors import FormatError
from confcom.formats.codec import U16, Cursor, Record, raw
from confcom.formats.sgx import ReportBody

MAX_CERTIFICATION_DATA = 64 * 1024
"""Bytes. Real chains take 3.5 to 3.7 kB, Intel's libraries stop at 12,294; room is left for platform manifests."""


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

PPID_TYPES = frozenset(
    {
        CertificationDataType.PPID_CLEARTEXT,
        CertificationDataType.PPID_ENCRYPTED_RSA_2048,
        CertificationDataType.PPID_ENCRYPTED_RSA_3072,
    }
)
"""What only names the platform: the PCK certificate comes from elsewhere."""


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


class CertificationData(msgspec.Struct, frozen=True):
    """One entry: its type and its bytes, uninterpreted."""

    type: CertificationDataType
    data: bytes

    @classmethod
    def read(cls, cursor: Cursor, field: str) -> Self:
        """Read an entry where the cursor stands."""
        start = cursor.offset
        number, size = cursor.unpack(_ENTRY, f"{field}.type", f"{field}.size")
        if number not in _TYPES:
            raise cursor.error(f"unknown type {number}, expected 1 to 7", f"{field}.type", start)
        if size > MAX_CERTIFICATION_DATA:
            raise cursor.error(f"{size} is over the limit {MAX_CERTIFICATION_DATA}", f"{field}.size", start + 2)
        return cls(_TYPES[number], cursor.take(size, f"{field}.data"))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an entry that takes all of `data`."""
        cursor = Cursor(data, "CertificationData")
        entry = cls.read(cursor, "entry")
        cursor.finish()
        return entry

    def __bytes__(self) -> bytes:
        return self.type.to_bytes(2, "little") + len(self.data).to_bytes(4, "little") + self.data

    def ppid(self) -> PpidCleartext | PpidEncryptedRsa2048 | PpidEncryptedRsa3072:
        """The platform's identifiers, for the types 1 to 3."""
        match self.type:
            case CertificationDataType.PPID_CLEARTEXT:
                return PpidCleartext.parse(self.data)
            case CertificationDataType.PPID_ENCRYPTED_RSA_2048:
                return PpidEncryptedRsa2048.parse(self.data)
            case CertificationDataType.PPID_ENCRYPTED_RSA_3072:
                return PpidEncryptedRsa3072.parse(self.data)
            case _:
                raise FormatError(f"type {self.type} holds no PPID", structure="CertificationData", field="type")


class QeReportCertification(msgspec.Struct, frozen=True):
    """Type 6, the outer entry of quotes v4 and v5: the QE's report, its signature, and the inner entry."""

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
        entry = CertificationData.read(cursor, "certification_data")
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
