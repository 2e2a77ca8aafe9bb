"""Structs of SGX and TDX: attributes, report bodies, reports, target info, QE report info, SIGSTRUCT.

Layouts: Intel SDM vol. 3D, chapter 35 (REPORT, TARGETINFO) and Intel's `sgx_report.h`, `sgx_quote_3.h`.
All integers are little-endian; all structs are packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated

from confcom.formats.codec import U8, U16, U32, U64, Record, nested, raw


class AttributeFlags(IntFlag):
    """The flags half of ATTRIBUTES (SDM vol. 3D §35.7.1)."""

    INIT = 1 << 0
    DEBUG = 1 << 1
    MODE64BIT = 1 << 2
    PROVISIONKEY = 1 << 4
    EINITTOKENKEY = 1 << 5
    CET = 1 << 6
    KSS = 1 << 7
    AEXNOTIFY = 1 << 10


_DEBUG = AttributeFlags.DEBUG.value
"""A plain number: operators of members of an enumeration take microseconds."""


@dataclass(frozen=True, slots=True)
class Attributes(Record):
    """ATTRIBUTES, 16 bytes: flags and the extended features (XFRM) of an enclave."""

    flags: Annotated[int, U64]
    xfrm: Annotated[int, U64]

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory can be read and written from outside."""
        return bool(self.flags & _DEBUG)

    @property
    def flag_names(self) -> tuple[str, ...]:
        """Names of the flags that are set; unknown bits as `bitN`."""
        known = {flag.value: flag.name or "" for flag in AttributeFlags}
        return tuple(known.get(1 << bit, f"bit{bit}") for bit in range(64) if self.flags >> bit & 1)


@dataclass(frozen=True, slots=True)
class ReportBody(Record):
    """`sgx_report_body_t`, 384 bytes: who the enclave is and what it says."""

    cpu_svn: Annotated[bytes, raw(16)]
    misc_select: Annotated[int, U32]
    reserved1: Annotated[bytes, raw(12)]
    isv_ext_prod_id: Annotated[bytes, raw(16)]
    attributes: Annotated[Attributes, nested]
    mr_enclave: Annotated[bytes, raw(32)]
    reserved2: Annotated[bytes, raw(32)]
    mr_signer: Annotated[bytes, raw(32)]
    reserved3: Annotated[bytes, raw(32)]
    config_id: Annotated[bytes, raw(64)]
    isv_prod_id: Annotated[int, U16]
    isv_svn: Annotated[int, U16]
    config_svn: Annotated[int, U16]
    reserved4: Annotated[bytes, raw(42)]
    isv_family_id: Annotated[bytes, raw(16)]
    report_data: Annotated[bytes, raw(64)]


BODY, KEY_ID, MAC = slice(384), slice(384, 416), slice(416, 432)
"""Where they stand in a report, for quotes, which are made without unpacking one."""
SDK_SIMULATION_KEY_ID = b"\xff\x00" * 8 + bytes(16)
"""KEYID of every report that Intel's SDK makes in simulation mode (SGX_MODE=SIM), 32 bytes."""


@dataclass(frozen=True, slots=True)
class Report(Record):
    """`sgx_report_t`, 432 bytes: a report body with the MAC that only its target can check. Not a quote."""

    body: Annotated[ReportBody, nested]
    key_id: Annotated[bytes, raw(32)]
    mac: Annotated[bytes, raw(16)]

    @property
    def is_of_sdk_simulation(self) -> bool:
        """Whether an enclave of Intel's SDK in simulation mode (SGX_MODE=SIM) made it; a CPU draws its key id."""
        return bytes(self)[KEY_ID] == SDK_SIMULATION_KEY_ID


@dataclass(frozen=True, slots=True)
class TargetInfo(Record):
    """`sgx_target_info_t`, 512 bytes: the enclave on this machine that a report is made for."""

    mr_enclave: Annotated[bytes, raw(32)]
    attributes: Annotated[Attributes, nested]
    reserved1: Annotated[bytes, raw(2)]
    config_svn: Annotated[int, U16]
    misc_select: Annotated[int, U32]
    reserved2: Annotated[bytes, raw(8)]
    config_id: Annotated[bytes, raw(64)]
    reserved3: Annotated[bytes, raw(384)]

    @classmethod
    def of(cls, body: ReportBody) -> TargetInfo:
        """The target info of the enclave that a report body describes."""
        return cls(
            mr_enclave=body.mr_enclave,
            attributes=body.attributes,
            reserved1=bytes(2),
            config_svn=body.config_svn,
            misc_select=body.misc_select,
            reserved2=bytes(8),
            config_id=body.config_id,
            reserved3=bytes(384),
        )


@dataclass(frozen=True, slots=True)
class QeReportInfo(Record):
    """`sgx_ql_qe_report_info_t`, 960 bytes: asks the QE for a report of its own over nonce and quote.

    In: `nonce` and the target info of the application enclave. Out: the same with `qe_report` filled; its
    report data is SHA-256(nonce ‖ quote) ‖ 32 zero bytes.
    """

    nonce: Annotated[bytes, raw(16)]
    app_enclave_target_info: Annotated[TargetInfo, nested]
    qe_report: Annotated[Report, nested]


# SIGSTRUCT, the signature of an enclave: who signed which code as which product, 1808 bytes.
#
# Layout: Intel SDM vol. 3D, "Enclave Signature Structure (SIGSTRUCT)". All integers are little-endian, those of 384
# bytes too. The signature covers bytes 0 to 127 and 900 to 1027; `appraisal.enclave_file` checks it.


HEADER = bytes.fromhex("06000000e10000000000010000000000")
HEADER2 = bytes.fromhex("01010000600000006000000001000000")
KEY_SIZE = 384
"""Bytes of modulus, signature, Q1 and Q2 (RSA-3072)."""
MAX_PLACES = 64
"""Places of one file that may look like a SIGSTRUCT; a signed enclave has one."""


@dataclass(frozen=True, slots=True)
class SigStruct(Record):
    """`enclave_css_t`, 1808 bytes."""

    header: Annotated[bytes, raw(16)]
    vendor: Annotated[int, U32]
    date: Annotated[int, U32]
    header2: Annotated[bytes, raw(16)]
    sw_defined: Annotated[int, U32]
    reserved1: Annotated[bytes, raw(84)]
    modulus: Annotated[bytes, raw(KEY_SIZE)]
    exponent: Annotated[int, U32]
    signature: Annotated[bytes, raw(KEY_SIZE)]
    misc_select: Annotated[int, U32]
    misc_mask: Annotated[int, U32]
    cet_attributes: Annotated[int, U8]
    cet_attributes_mask: Annotated[int, U8]
    reserved2: Annotated[bytes, raw(2)]
    isv_family_id: Annotated[bytes, raw(16)]
    attributes: Annotated[Attributes, nested]
    attribute_mask: Annotated[Attributes, nested]
    enclave_hash: Annotated[bytes, raw(32)]
    reserved3: Annotated[bytes, raw(16)]
    isv_ext_prod_id: Annotated[bytes, raw(16)]
    isv_prod_id: Annotated[int, U16]
    isv_svn: Annotated[int, U16]
    reserved4: Annotated[bytes, raw(12)]
    q1: Annotated[bytes, raw(KEY_SIZE)]
    q2: Annotated[bytes, raw(KEY_SIZE)]

    @property
    def signed_bytes(self) -> bytes:
        """The 256 bytes that the signature covers."""
        data = bytes(self)
        return data[:128] + data[900:1028]


def is_sigstruct(data: bytes) -> bool:
    """Whether `data` begins as a SIGSTRUCT does: both fixed headers in their places."""
    return data.startswith(HEADER) and data[24:40] == HEADER2


def find_sigstructs(data: bytes) -> Iterator[tuple[int, SigStruct]]:
    """What looks like a SIGSTRUCT in a file, with its offset; at most the first `MAX_PLACES`.

    Every framework puts it elsewhere (a note of the SDK's, a section of Open Enclave's, a file of Gramine's); its two
    fixed headers are the same everywhere.
    """
    found, size = 0, SigStruct.size()
    at = data.find(HEADER)
    while at >= 0 and found < MAX_PLACES:
        if data[at + 24 : at + 40] == HEADER2 and at + size <= len(data):
            found += 1
            yield at, SigStruct.parse(data[at : at + size])
        at = data.find(HEADER, at + 1)


# TD report bodies as they stand in quotes: TDX 1.0, 1.5 and 1.5 extended.
#
# Layouts: Intel TDX module specification (TDREPORT, TDINFO) and `sgx_quote_4.h`, `sgx_quote_5.h`.


class TdAttributeFlags(IntFlag):
    """Bits of TDATTRIBUTES."""

    DEBUG = 1 << 0
    SEPT_VE_DISABLE = 1 << 28
    MIGRATABLE = 1 << 29
    PKS = 1 << 30
    KL = 1 << 31
    PERFMON = 1 << 63


@dataclass(frozen=True, slots=True)
class TdReportBody10(Record):
    """`sgx_report2_body_t`, 584 bytes: a TD of TDX 1.0, or the part that later bodies begin with."""

    tee_tcb_svn: Annotated[bytes, raw(16)]
    mr_seam: Annotated[bytes, raw(48)]
    mr_signer_seam: Annotated[bytes, raw(48)]
    seam_attributes: Annotated[bytes, raw(8)]
    td_attributes: Annotated[int, U64]
    xfam: Annotated[int, U64]
    mr_td: Annotated[bytes, raw(48)]
    mr_config_id: Annotated[bytes, raw(48)]
    mr_owner: Annotated[bytes, raw(48)]
    mr_owner_config: Annotated[bytes, raw(48)]
    rtmr0: Annotated[bytes, raw(48)]
    rtmr1: Annotated[bytes, raw(48)]
    rtmr2: Annotated[bytes, raw(48)]
    rtmr3: Annotated[bytes, raw(48)]
    report_data: Annotated[bytes, raw(64)]

    @property
    def debug(self) -> bool:
        """Whether the TD's memory can be read and written by its host."""
        return bool(self.td_attributes & TdAttributeFlags.DEBUG)


@dataclass(frozen=True, slots=True)
class TdReportBody15(Record):
    """`sgx_report2_body_v1_5_t`, 648 bytes: adds the SVN of the module that runs now, and a service TD's hash."""

    base: Annotated[TdReportBody10, nested]
    tee_tcb_svn2: Annotated[bytes, raw(16)]
    mr_service_td: Annotated[bytes, raw(48)]

    @property
    def report_data(self) -> bytes:
        """The 64 free bytes."""
        return self.base.report_data


@dataclass(frozen=True, slots=True)
class TdReportBody15Ex(Record):
    """The extended TDX 1.5 body, 885 bytes."""

    body: Annotated[TdReportBody15, nested]
    vm_id: Annotated[int, U8]
    td_id: Annotated[bytes, raw(32)]
    device_info_hash: Annotated[bytes, raw(48)]
    init_service_td_hash: Annotated[bytes, raw(48)]
    init_service_td_attributes: Annotated[bytes, raw(8)]
    init_cpu_svn: Annotated[bytes, raw(16)]
    init_tee_tcb_svn: Annotated[bytes, raw(16)]
    init_tee_fmspc: Annotated[bytes, raw(12)]
    current_service_td_hash: Annotated[bytes, raw(48)]
    current_service_td_attributes: Annotated[bytes, raw(8)]

    @property
    def base(self) -> TdReportBody10:
        """The TDX 1.0 part."""
        return self.body.base

    @property
    def tee_tcb_svn2(self) -> bytes:
        """SVNs of the TDX module that runs now."""
        return self.body.tee_tcb_svn2

    @property
    def mr_service_td(self) -> bytes:
        """Hash of the service TDs bound to this TD; zero without any."""
        return self.body.mr_service_td

    @property
    def report_data(self) -> bytes:
        """The 64 free bytes."""
        return self.base.report_data


TdReportBody = TdReportBody10 | TdReportBody15 | TdReportBody15Ex


def td_base(body: TdReportBody) -> TdReportBody10:
    """The TDX 1.0 part of any TD report body."""
    return body if isinstance(body, TdReportBody10) else body.base
