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
from functools import lru_cache
from operator import ge
from pathlib import Path
from typing import Annotated, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.errors import ConfigError, FormatError, NativeError, ReportRejected
from confcom.formats.arguments import without_bom
from confcom.formats.codec import U16, U32, U64, Record, nested, raw
from confcom.formats.sgx import (
    BODY,
    KEY_ID,
    MAC,
    SDK_SIMULATION_KEY_ID,
    AttributeFlags,
    Attributes,
    Report,
    ReportBody,
    TargetInfo,
)
from confcom.input_file import read_bounded, was_opened
from confcom.simulator.declaration import EnclaveDeclaration

# Keys and bytes derived from a seed, by HKDF-SHA256 with a label per purpose. ECDSA signatures are deterministic (RFC
# 6979), so that the same seed gives the same quotes, certificates and signed documents, byte for byte.

MIN_SEED = 16
"""Bytes. Shorter seeds could be guessed from a published certificate."""

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SALT = b"confcom simulated platform, version 1"
_ECDSA = ec.ECDSA(SHA256(), deterministic_signing=True)


def check_seed(seed: bytes) -> None:
    """Refuse seeds of fewer than 16 or more than 64 bytes."""
    if not MIN_SEED <= len(seed) <= 64:
        raise ConfigError(f"a seed has {MIN_SEED} to 64 bytes, found {len(seed)}", advice="Use 32 random bytes.")


def derive_bytes(secret: bytes, label: str, size: int = 32) -> bytes:
    """`size` bytes that only who knows the secret can compute, another string for every label."""
    return HKDF(algorithm=SHA256(), length=size, salt=_SALT, info=label.encode()).derive(secret)


def derive_p256_key(secret: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key; 48 derived bytes, reduced, leave no measurable bias (FIPS 186-5, A.2.1)."""
    scalar = int.from_bytes(derive_bytes(secret, label, 48), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x‖y, 64 bytes, big-endian."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256 as quotes and signed JSON carry it: r‖s, 64 bytes, big-endian."""
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@lru_cache(maxsize=64)
def _cmac(key: bytes) -> CMAC:
    return CMAC(AES(key))


def aes_cmac(key: bytes, message: bytes) -> bytes:
    """AES-128-CMAC, 16 bytes (NIST SP 800-38B)."""
    mac = _cmac(key).copy()  # the same few keys, thousands of times a second
    mac.update(message)
    return mac.finalize()


# The secrets of one CPU, the keys that follow from them, and how reports are keyed.
#
# EGETKEY: the dependencies of every key are laid out in one struct, and the key is derived from that struct under the
# CPU's device key. Intel does not publish the derivation itself; here it is AES-128-CMAC. Keys are those that quoting
# needs: of reports, of seals by signer, and for provisioning.
#
# Intel's SDK in simulation mode keys reports with public constants: anyone can make them, and every simulated machine
# takes them and answers in the same way. Its own enclaves report as the machine file says.

PKCS1_PADDING = b"\x00\x01" + b"\xff" * 330 + bytes.fromhex("003031300d060960864801650304020105000420")
"""HARDCODED_PKCS1_5_PADDING of the SDM, 352 bytes."""
PROVISION, REPORT, SEAL = 1, 3, 4
"""KEYNAME of EGETKEY."""
_MRSIGNER = 2
"""KEYPOLICY: seal keys by signer."""
_ANY_MISC = 0xFFFFFFFF
"""MISCMASK of a key that depends on no bit of MISCSELECT."""

_SECRETS = {"device key": 16, "root provisioning key": 16, "owner epoch": 16, "seal key fuses": 16, "report key id": 32}
"""Sizes of a CPU's secrets, in the order of the fields of `Processor`."""

REQUIRED_SEALING_MASK = AttributeFlags.INIT | AttributeFlags.DEBUG
"""The attributes that every seal and provisioning key depends on."""


@dataclass(frozen=True, slots=True)
class KeyDependencies(Record):
    """TMP_KEYDEPENDENCIES of the SDM, 642 bytes, in the SDM's order; zero is what a key does not depend on."""

    key_name: Annotated[int, U16]
    isv_family_id: Annotated[bytes, raw(16)] = bytes(16)
    isv_ext_prod_id: Annotated[bytes, raw(16)] = bytes(16)
    isv_prod_id: Annotated[int, U16] = 0
    isv_svn: Annotated[int, U16] = 0
    owner_epoch: Annotated[bytes, raw(16)] = bytes(16)
    attribute_flags: Annotated[int, U64] = 0
    attribute_xfrm: Annotated[int, U64] = 0
    attribute_flags_mask: Annotated[int, U64] = 0
    attribute_xfrm_mask: Annotated[int, U64] = 0
    mr_enclave: Annotated[bytes, raw(32)] = bytes(32)
    mr_signer: Annotated[bytes, raw(32)] = bytes(32)
    key_id: Annotated[bytes, raw(32)] = bytes(32)
    seal_key_fuses: Annotated[bytes, raw(16)] = bytes(16)
    cpu_svn: Annotated[bytes, raw(16)] = bytes(16)
    padding: Annotated[bytes, raw(352)] = PKCS1_PADDING
    misc_select: Annotated[int, U32] = 0
    misc_mask: Annotated[int, U32] = 0
    key_policy: Annotated[int, U16] = 0
    config_id: Annotated[bytes, raw(64)] = bytes(64)
    config_svn: Annotated[int, U16] = 0


@dataclass(frozen=True, slots=True)
class Processor:
    """Fuses and registers of one CPU. Nothing of it may reach a log or an answer."""

    device_key: bytes = field(repr=False)
    root_provisioning_key: bytes = field(repr=False)
    owner_epoch: bytes = field(repr=False)
    seal_key_fuses: bytes = field(repr=False)
    report_key_id: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes, index: int) -> Self:
        """The CPU of machine `index`; unlike real hardware's, its report key id is the same at every start."""
        return cls(*(derive_bytes(seed, f"machine {index}: {name}", size) for name, size in _SECRETS.items()))

    def report_key(self, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """The key that EREPORT MACs a report for `target` with, and that only the target can ask for; 16 bytes."""
        dependencies = KeyDependencies(
            key_name=REPORT,
            owner_epoch=self.owner_epoch,
            attribute_flags=target.attributes.flags,
            attribute_xfrm=target.attributes.xfrm,
            mr_enclave=target.mr_enclave,
            key_id=key_id,
            seal_key_fuses=self.seal_key_fuses,
            cpu_svn=cpu_svn,
            misc_select=target.misc_select,
            config_id=target.config_id,
            config_svn=target.config_svn,
        )
        return aes_cmac(self.device_key, bytes(dependencies))

    def seal_key(self, enclave: ReportBody, key_id: bytes, *, isv_svn: int, cpu_svn: bytes) -> bytes:
        """The seal key of the enclave's signer and product at these SVNs, 16 bytes."""
        dependencies = KeyDependencies(
            key_name=SEAL,
            isv_prod_id=enclave.isv_prod_id,
            isv_svn=isv_svn,
            owner_epoch=self.owner_epoch,
            attribute_flags=enclave.attributes.flags & REQUIRED_SEALING_MASK,
            mr_signer=enclave.mr_signer,
            key_id=key_id,
            seal_key_fuses=self.seal_key_fuses,
            cpu_svn=cpu_svn,
            misc_mask=_ANY_MISC,
            key_policy=_MRSIGNER,
        )
        return aes_cmac(self.device_key, bytes(dependencies))

    def provisioning_key(self, enclave: ReportBody) -> bytes:
        """16 bytes. It survives a change of owner and Intel knows it: no epoch, no seal fuses, no key id."""
        dependencies = KeyDependencies(
            key_name=PROVISION,
            isv_prod_id=enclave.isv_prod_id,
            isv_svn=enclave.isv_svn,
            attribute_flags=enclave.attributes.flags & REQUIRED_SEALING_MASK,
            mr_signer=enclave.mr_signer,
            cpu_svn=enclave.cpu_svn,
            misc_mask=_ANY_MISC,
        )
        return aes_cmac(self.root_provisioning_key, bytes(dependencies))


CPU_SVN = ReportBody.place("cpu_svn")
"""Where it stands in a report, which its body begins, and in the body."""


class ReportScheme:
    """Reports as the CPU makes them: keys depend on the machine's fuses and its present CPUSVN."""

    name = "hardware"
    """The word for it in machine files."""

    def cpu_svn(self, machine_cpu_svn: bytes) -> bytes:
        """CPUSVN that EREPORT writes on a machine with that raw CPUSVN."""
        return machine_cpu_svn

    def key_id(self, processor: Processor) -> bytes:
        """KEYID, 32 bytes, that EREPORT writes."""
        return processor.report_key_id

    def report_key(self, processor: Processor, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """The key, 16 bytes, of reports for `target`."""
        return processor.report_key(target, key_id, cpu_svn)

    def check_origin(self, report: Report, machine_cpu_svn: bytes) -> None:
        """Raise `ReportRejected` if the report was made in the other way, or not on the machine as it is now.

        A microcode update changes CPUSVN, and the report key with it.
        """
        if bytes(report)[CPU_SVN] != machine_cpu_svn:
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


class SdkSimulationReportScheme(ReportScheme):
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
            key_name=REPORT,
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


HARDWARE = ReportScheme()
SDK_SIMULATION = SdkSimulationReportScheme()
REPORT_SCHEMES: dict[str, ReportScheme] = {scheme.name: scheme for scheme in (HARDWARE, SDK_SIMULATION)}


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
        svns = self.sgx_components
        return replace(self, sgx_components=(*svns[:number], svn, *svns[number + 1 :]))


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
YEARS = range(2000, 2201)  # X.509 has no dates before 1950 and after 9999; certificates live for 30 years


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
        if form.created.year not in YEARS:
            raise _refusal("created", f"must lie in the years {YEARS[0]} to {YEARS[-1]}")
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
            advice = "Use it as it is, or remove it to make another machine."
            raise ConfigError(f"{path} exists already", advice=advice) from error
        except OSError as error:
            raise ConfigError(f"cannot write the machine file {path}: {error.strerror}") from error

    def machine(self) -> SimulatedMachine:
        """The machine, with the same secrets in every process."""
        scheme = REPORT_SCHEMES[self.report_scheme]
        return SimulatedMachine(self.seed, self.index, tcb=self.tcb, report_scheme=scheme, pck_ca=self.pck_ca)


class _Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
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
