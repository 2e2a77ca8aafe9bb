"""TD report bodies as they stand in quotes: TDX 1.0, 1.5 and 1.5 extended.

Layouts: Intel TDX module specification (TDREPORT, TDINFO) and `sgx_quote_4.h`, `sgx_quote_5.h`; packed, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated

from confcom.formats.codec import U8, U64, Record, nested, raw


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
