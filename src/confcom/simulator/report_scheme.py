"""How a report's MAC is keyed: as on hardware, or as Intel's SDK does it in simulation mode.

The SDK's simulation mode uses public constants, so that anyone can make such a report. Every simulated machine takes
them, and its QE answers their enclaves in the same way. Its own enclaves report in the way that the machine file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from confcom.errors import ConfigError, ReportRejected
from confcom.formats.codec import U16, U32, Record, nested, raw
from confcom.formats.sgx import SDK_SIMULATION_KEY_ID, Attributes, Report, TargetInfo
from confcom.simulator.keys import aes_cmac
from confcom.simulator.processor import KeyName, Processor


class ReportScheme(Protocol):
    """Where CPUSVN, key id and key of a report come from."""

    @property
    def name(self) -> str:
        """The word for it in machine files."""

    def cpu_svn(self, machine_cpu_svn: bytes) -> bytes:
        """CPUSVN that EREPORT writes on a machine with that raw CPUSVN."""

    def key_id(self, processor: Processor) -> bytes:
        """KEYID, 32 bytes, that EREPORT writes."""

    def report_key(self, processor: Processor, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """The key, 16 bytes, of reports for `target`."""

    def check_origin(self, report: Report, machine_cpu_svn: bytes) -> None:
        """Raise `ReportRejected` if the report was made in the other way, or not on the machine as it is now."""


class HardwareReportScheme:
    """Reports as the CPU makes them: keys depend on the machine's fuses and its present CPUSVN."""

    name = "hardware"

    def cpu_svn(self, machine_cpu_svn: bytes) -> bytes:
        """The machine's own."""
        return machine_cpu_svn

    def key_id(self, processor: Processor) -> bytes:
        """The CPU's own."""
        return processor.report_key_id

    def report_key(self, processor: Processor, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """EGETKEY(REPORT)."""
        return processor.report_key(target, key_id, cpu_svn)

    def check_origin(self, report: Report, machine_cpu_svn: bytes) -> None:
        """Takes the machine's present CPUSVN only: a microcode update changes the report key."""
        if report.body.cpu_svn != machine_cpu_svn:
            raise ReportRejected("the report was made at another CPUSVN than the machine's present one")


SDK_BASE_REPORT_KEY = b"\xff\x00" * 8
SDK_OWNER_EPOCH = b"THISISOWNEREPOCH"
SDK_CPU_SVN_DEFAULT = bytes.fromhex("4820f3376ae6b2f2034d3b7a4b48a778")


@dataclass(frozen=True, slots=True)
class SdkReportKeyDerivation(Record):
    """The derivation data of the SDK's simulated report key, 192 bytes; a C struct with its gaps, all zero."""

    key_name: Annotated[int, U16]
    gap1: Annotated[bytes, raw(6)]
    attributes: Annotated[Attributes, nested]
    misc_select: Annotated[int, U32]
    owner_epoch: Annotated[bytes, raw(16)]
    mr_enclave: Annotated[bytes, raw(32)]
    cpu_svn: Annotated[bytes, raw(16)]
    config_svn: Annotated[int, U16]
    config_id: Annotated[bytes, raw(64)]
    key_id: Annotated[bytes, raw(32)]
    gap2: Annotated[bytes, raw(2)]


class SdkSimulationReportScheme:
    """Reports of enclaves built with Intel's SDK in simulation mode (SGX_MODE=SIM). They prove nothing."""

    name = "sdk-simulation"

    def cpu_svn(self, machine_cpu_svn: bytes) -> bytes:
        """The SDK's default, whatever the machine."""
        del machine_cpu_svn
        return SDK_CPU_SVN_DEFAULT

    def key_id(self, processor: Processor) -> bytes:
        """The SDK's constant."""
        del processor
        return SDK_SIMULATION_KEY_ID

    def report_key(self, processor: Processor, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """The SDK's derivation, which no fuse enters."""
        del processor
        derivation = SdkReportKeyDerivation(
            key_name=KeyName.REPORT,
            gap1=bytes(6),
            attributes=target.attributes,
            misc_select=target.misc_select,
            owner_epoch=SDK_OWNER_EPOCH,
            mr_enclave=target.mr_enclave,
            cpu_svn=cpu_svn,
            config_svn=target.config_svn,
            config_id=target.config_id,
            key_id=key_id,
            gap2=bytes(2),
        )
        return aes_cmac(SDK_BASE_REPORT_KEY, bytes(derivation))

    def check_origin(self, report: Report, machine_cpu_svn: bytes) -> None:
        """Takes every CPUSVN: each process has its own, which `sgx_config_cpusvn` sets."""
        del machine_cpu_svn
        if not report.is_of_sdk_simulation:
            raise ReportRejected(
                "the report was not made in simulation mode of Intel's SDK (SGX_MODE=SIM), and this simulated machine "
                "takes no others",
                advice="Give helper and enclave a new machine file: confcom simulate machine -o FILE",
            )


HARDWARE: ReportScheme = HardwareReportScheme()
SDK_SIMULATION: ReportScheme = SdkSimulationReportScheme()
REPORT_SCHEMES = {scheme.name: scheme for scheme in (HARDWARE, SDK_SIMULATION)}


def report_scheme(name: str) -> ReportScheme:
    """The scheme of that name."""
    scheme = REPORT_SCHEMES.get(name)
    if scheme is None:
        raise ConfigError(f"unknown report scheme {name!r}", advice=f"Known are {', '.join(REPORT_SCHEMES)}.")
    return scheme
