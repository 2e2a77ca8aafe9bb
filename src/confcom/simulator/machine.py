"""A machine with SGX: its CPU's secrets, its TCB, and the enclaves on it; and the file that it is made from.

EREPORT and EGETKEY follow the Intel SDM vol. 3D. Machines of one seed and index are the same machine, in whatever
process: a report made in one is accepted in the other, as between two processes on one CPU. Processes share a machine
through its file: JSON with everything that it is made from, its seed included. The readers of the file can make reports
of every enclave there, so it is written with mode 0600 and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from operator import ge
from pathlib import Path
from typing import Annotated, Self

import msgspec

from confcom.errors import ConfigError, FormatError, NativeError, ReportRejected
from confcom.formats.arguments import without_bom
from confcom.formats.sgx import BODY, KEY_ID, MAC, AttributeFlags, Report, ReportBody, TargetInfo
from confcom.input_file import read_bounded, was_opened
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.keys import aes_cmac, check_seed, derive_bytes
from confcom.simulator.processor import (
    CPU_SVN,
    HARDWARE,
    REPORT_SCHEMES,
    SDK_SIMULATION,
    Processor,
    ReportScheme,
    report_scheme,
)

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
        data = bytes(report)
        expected = aes_cmac(self._report_key(report), data[BODY])
        if not hmac.compare_digest(expected, data[MAC]):
            raise ReportRejected("the report's MAC is wrong: it was altered, or made elsewhere or for another enclave")

    def seal_key(self, label: bytes, *, isv_svn: int, cpu_svn: bytes | None = None) -> bytes:
        """EGETKEY of a seal key by signer, 16 bytes; `cpu_svn` None means the present one."""
        svn = self._machine.tcb.cpu_svn if cpu_svn is None else cpu_svn
        return self._machine.processor.seal_key(self._identity(), label.ljust(32, b"\0"), isv_svn=isv_svn, cpu_svn=svn)

    def provisioning_key(self) -> bytes:
        """EGETKEY of the provisioning key at the present TCB, 16 bytes."""
        return self._machine.processor.provisioning_key(self._identity())

    def _identity(self) -> ReportBody:
        return self.declaration.report_body(self._machine.tcb.cpu_svn, bytes(64))

    def _report_key(self, report: Report) -> bytes:
        # The reports of a machine's own enclaves share key id and CPUSVN, so remembering one key is enough.
        data = bytes(report)
        inputs = data[KEY_ID], data[CPU_SVN]
        if self._key_inputs != inputs:
            machine = self._machine
            self._key = machine.scheme_of(report).report_key(machine.processor, self.target_info, *inputs)
            self._key_inputs = inputs
        return self._key


FORMAT = "confcom simulated machine"
VERSION = 1
MAX_MACHINE_FILE = 16 * 1024
"""Bytes; a machine file has about 400."""
INDEX_BITS = 31
"""Machines of one world are numbered with this many bits: enough for numbers made from names not to meet."""

_ADVICE = "Make a new machine file with `confcom simulate machine -o FILE`, and give every process the same one."
_YEARS = range(2000, 2201)


@dataclass(frozen=True, slots=True)
class MachineFile:
    """The content of the file. `created` is when the machine's certificates begin."""

    seed: bytes = field(repr=False)
    created: datetime
    index: int = 0
    tcb: MachineTcb = DEFAULT_TCB
    pck_ca: PckCa = PckCa.PLATFORM
    report_scheme: str = HARDWARE.name

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the JSON; `FormatError` names the field, and never shows the seed."""
        if len(data) > MAX_MACHINE_FILE:
            raise _refusal("", f"is over {MAX_MACHINE_FILE} bytes")
        try:
            form = _FORM.decode(without_bom(data))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _refusal("", str(error)) from None
        if form.format != FORMAT or form.version != VERSION:
            raise _refusal("format", f"is not {FORMAT!r} version {VERSION}")
        if form.created.year not in _YEARS:
            raise _refusal("created", f"must lie in the years {_YEARS[0]} to {_YEARS[-1]}")
        if form.report_scheme not in REPORT_SCHEMES:
            raise _refusal("report_scheme", f"is none of {', '.join(REPORT_SCHEMES)}")
        if form.pck_ca not in tuple(PckCa):
            raise _refusal("pck_ca", f"is none of {', '.join(PckCa)}")
        return cls(
            seed=_seed(form.seed),
            created=form.created.astimezone(UTC),
            index=form.machine,
            tcb=MachineTcb(tuple(form.sgx_components), form.pce_svn),
            pck_ca=PckCa(form.pck_ca),
            report_scheme=form.report_scheme,
        )

    def __bytes__(self) -> bytes:
        form = _Form(
            format=FORMAT,
            version=VERSION,
            seed=self.seed.hex(),
            machine=self.index,
            created=self.created,
            sgx_components=list(self.tcb.sgx_components),
            pce_svn=self.tcb.pce_svn,
            pck_ca=self.pck_ca.value,
            report_scheme=self.report_scheme,
        )
        return msgspec.json.format(msgspec.json.encode(form), indent=2) + b"\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a machine file; `ConfigError` if it cannot be read, `FormatError` with its path if it is wrong."""
        try:
            content = read_bounded(path, MAX_MACHINE_FILE)
        except OSError as error:
            raise ConfigError(f"cannot read the machine file {path}: {error.strerror}", advice=_ADVICE) from error
        where = f"machine file {path}"
        if not content:
            raise FormatError("is empty", structure=where, field="", advice=_ADVICE)
        try:
            return cls.parse(content)
        except FormatError as error:
            raise FormatError(error.message, structure=where, field="", advice=error.advice()) from None

    def named(self, name: str) -> Self:
        """The machine of that name in the same world: one name is always one machine."""
        digest = hashlib.sha256(b"confcom simulated machine\0" + name.encode()).digest()
        return replace(self, index=int.from_bytes(digest[:4], "big") >> 32 - INDEX_BITS)

    def write(self, path: Path, *, over: bool = False) -> None:
        """Write the file, mode 0600, whole or not at all; an existing file is left alone with a `ConfigError`.

        With `over`, it is replaced in one step, unless it is a file that was read.
        """
        try:
            if over and was_opened(path):
                raise ConfigError(f"{path} is the file of the world and would be overwritten")
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as draft:
                draft.write(bytes(self))
                draft.flush()
                if over:
                    beside = path.with_name(f".{path.name}.{os.getpid()}")
                    os.link(draft.name, beside)
                    beside.replace(path)
                else:
                    os.link(draft.name, path)
        except FileExistsError as error:
            raise ConfigError(
                f"{path} exists already", advice="Use it as it is, or remove it to make another machine."
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot write the machine file {path}: {error.strerror}") from error

    def machine(self) -> SimulatedMachine:
        """The machine, with the same secrets in every process."""
        return SimulatedMachine(
            self.seed,
            self.index,
            tcb=self.tcb,
            report_scheme=report_scheme(self.report_scheme),
            pck_ca=self.pck_ca,
        )


class _Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The JSON form."""

    format: str
    version: int
    seed: str
    machine: Annotated[int, msgspec.Meta(ge=0, lt=1 << INDEX_BITS)]
    created: Annotated[datetime, msgspec.Meta(tz=True)]
    sgx_components: list[int]
    pce_svn: int
    pck_ca: str
    report_scheme: str


_FORM = msgspec.json.Decoder(_Form)


def _seed(digits: str) -> bytes:
    try:
        seed = bytes.fromhex(digits)
        check_seed(seed)
    except (ValueError, ConfigError):
        raise _refusal("seed", "has 16 to 64 bytes in hexadecimal") from None
    return seed


def _refusal(field: str, message: str) -> FormatError:
    return FormatError(message, structure="MachineFile", field=field, advice=_ADVICE)
