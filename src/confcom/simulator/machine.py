"""A machine with SGX: its CPU's secrets, its TCB, and the enclaves on it.

EREPORT and EGETKEY follow the Intel SDM vol. 3D. Machines of one seed and index are the same machine, in whatever
process: a report made in one is accepted in the other, as between two processes on one CPU.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import ge

from confcom.errors import FormatError, NativeError, ReportRejected
from confcom.formats.sgx import AttributeFlags, Report, ReportBody, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.keys import aes_cmac, check_seed, derive_bytes
from confcom.simulator.processor import KeyRequest, Processor
from confcom.simulator.report_scheme import HARDWARE, SDK_SIMULATION, ReportScheme

UNABLE_TO_GENERATE_QE_REPORT = 0xE017
"""`quote3_error_t` that Intel's QE returns when EREPORT faults."""


@dataclass(frozen=True, slots=True)
class MachineTcb:
    """The TCB of a machine: sixteen component SVNs of 0 to 255 and the PCE's SVN."""

    sgx_components: tuple[int, ...]
    pce_svn: int

    def __post_init__(self) -> None:
        if len(self.sgx_components) != 16 or not all(0 <= svn <= 255 for svn in self.sgx_components):
            raise FormatError("sixteen numbers of 0 to 255", structure="MachineTcb", field="sgx_components")
        if not 0 <= self.pce_svn <= 0xFFFF:
            raise FormatError("a number of 0 to 65535", structure="MachineTcb", field="pce_svn")

    @property
    def cpu_svn(self) -> bytes:
        """CPUSVN of reports, 16 bytes: the components in order, as Intel's PCK selection reads it (dcap.md §8)."""
        return bytes(self.sgx_components)

    def reached_by(self, cpu_svn: bytes, pce_svn: int) -> bool:
        """Whether a raw TCB (CPUSVN 16 bytes, PCESVN) is at least this one in every component."""
        return pce_svn >= self.pce_svn and all(map(ge, cpu_svn, self.cpu_svn))

    def with_component(self, number: int, svn: int) -> MachineTcb:
        """The same TCB with component `number` (0 to 15) at another SVN."""
        components = list(self.sgx_components)
        components[number] = svn
        return replace(self, sgx_components=tuple(components))


DEFAULT_TCB = MachineTcb(sgx_components=(11, 11, 2, 2, 255, 255, 1, *[0] * 9), pce_svn=13)


class PckCa(StrEnum):
    """Which CA certifies the machine: servers come from the platform CA, clients from the processor CA."""

    PLATFORM = "platform"
    PROCESSOR = "processor"


FMSPC = b"\0\0" + b"SIM\0"
"""Family, model, stepping, platform and custom SKU of every simulated machine."""


class SimulatedMachine:
    """One machine. `tcb` may be changed, as by a microcode update: report and attestation keys change with it."""

    def __init__(
        self,
        seed: bytes,
        index: int = 0,
        *,
        tcb: MachineTcb = DEFAULT_TCB,
        report_scheme: ReportScheme = HARDWARE,
        pck_ca: PckCa = PckCa.PLATFORM,
        fmspc: bytes = FMSPC,
    ) -> None:
        check_seed(seed)
        self.index = index
        self.tcb = tcb
        self.report_scheme = report_scheme
        self.pck_ca = pck_ca
        self.fmspc = fmspc
        self.pce_id = 0
        self.processor = Processor.from_seed(seed, index)
        self.ppid = derive_bytes(seed, f"machine {index}: PPID", 16)
        self.platform_instance_id = derive_bytes(seed, f"machine {index}: platform instance id", 16)

    def scheme_of(self, report: Report) -> ReportScheme:
        """How a report is to be checked, and its enclave to be answered."""
        return SDK_SIMULATION if report.is_of_sdk_simulation else self.report_scheme

    def launch(self, declaration: EnclaveDeclaration) -> SimulatedEnclave:
        """Start an enclave of that identity."""
        return SimulatedEnclave(self, declaration)


class SimulatedEnclave:
    """An enclave on a machine: it can report to its neighbours, check their reports, and derive keys."""

    def __init__(self, machine: SimulatedMachine, declaration: EnclaveDeclaration) -> None:
        self.declaration = declaration
        self._machine = machine
        self._key_inputs = (b"", b"")
        self._key = b""

    @property
    def target_info(self) -> TargetInfo:
        """Whom others must name to report to this enclave."""
        return TargetInfo.of(self.declaration.report_body(bytes(16), bytes(64)))

    def create_report(self, target_info: TargetInfo, report_data: bytes, *, like: Report | None = None) -> Report:
        """EREPORT for the target over exactly 64 bytes; a target that is no initialized enclave faults.

        With `like`, a report of the target, it is made in the same way and at the same CPUSVN, so that the target can
        check it.
        """
        if len(report_data) != 64:
            raise FormatError(f"is 64 bytes, found {len(report_data)}", structure="Report", field="report_data")
        if not target_info.attributes.flags & AttributeFlags.INIT:
            raise NativeError(
                "EREPORT faults: the target info names no initialized enclave",
                native_code=UNABLE_TO_GENERATE_QE_REPORT,
                advice="Ask the target enclave for its target info and pass it on unchanged.",
            )
        processor, scheme = self._machine.processor, self._machine.report_scheme
        cpu_svn = scheme.cpu_svn(self._machine.tcb.cpu_svn)
        if like is not None:
            scheme, cpu_svn = self._machine.scheme_of(like), like.body.cpu_svn
        body = self.declaration.report_body(cpu_svn, report_data)
        key_id = scheme.key_id(processor)
        key = scheme.report_key(processor, target_info, key_id, cpu_svn)
        return Report(body=body, key_id=key_id, mac=aes_cmac(key, bytes(body)))

    def verify_report(self, report: Report) -> None:
        """Check that a report was made for this enclave, on this machine, at its present TCB."""
        self._machine.scheme_of(report).check_origin(report, self._machine.tcb.cpu_svn)
        expected = aes_cmac(self._report_key(report), bytes(report.body))
        if not hmac.compare_digest(expected, report.mac):
            raise ReportRejected("the report's MAC is wrong: it was altered, or made elsewhere or for another enclave")

    def get_key(self, request: KeyRequest) -> bytes:
        """EGETKEY, 16 bytes: a seal key, or with the PROVISIONKEY attribute a provisioning key."""
        return self._machine.processor.get_key(self._identity, request)

    @property
    def _identity(self) -> ReportBody:
        return self.declaration.report_body(self._machine.tcb.cpu_svn, bytes(64))

    def _report_key(self, report: Report) -> bytes:
        # The reports of a machine's own enclaves share key id and CPUSVN, so remembering one key is enough.
        inputs = report.key_id, report.body.cpu_svn
        if self._key_inputs != inputs:
            machine = self._machine
            self._key = machine.scheme_of(report).report_key(machine.processor, self.target_info, *inputs)
            self._key_inputs = inputs
        return self._key
