"""Intel's SGX extension of a PCK certificate (dcap.md §2): which platform, at which TCB."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

PCK_EXTENSION_OID = "1.2.840.113741.1.13.1"


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
        """Read the DER value of the extension."""
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        raise NotImplementedError
