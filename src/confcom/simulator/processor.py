"""The secrets of one simulated CPU, the keys that follow from them, and how reports are keyed.

Intel SDM vol. 3D, EGETKEY: the dependencies of every key are laid out in one struct, and the key is derived from that
struct under the CPU's device key. Intel does not publish the derivation itself; here it is AES-128-CMAC. Keys are those
that quoting needs: of reports, of seals by signer, and for provisioning.

Intel's SDK in simulation mode keys reports with public constants, so that anyone can make such a report. Every
simulated machine takes them, and its QE answers their enclaves in the same way. Its own enclaves report in the way that
the machine file says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

from confcom.errors import ConfigError, ReportRejected
from confcom.formats.codec import U16, U32, U64, Record, nested, raw
from confcom.formats.sgx import SDK_SIMULATION_KEY_ID, AttributeFlags, Attributes, Report, ReportBody, TargetInfo
from confcom.simulator.keys import aes_cmac, derive_bytes

PKCS1_PADDING = b"\x00\x01" + b"\xff" * 330 + bytes.fromhex("003031300d060960864801650304020105000420")
"""HARDCODED_PKCS1_5_PADDING of the SDM, 352 bytes."""
PROVISION, REPORT, SEAL = 1, 3, 4
"""KEYNAME of EGETKEY."""
_MRSIGNER = 2
"""KEYPOLICY: seal keys by signer."""
_ANY_MISC = 0xFFFFFFFF
"""MISCMASK of a key that depends on no bit of MISCSELECT."""

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

        def secret(name: str, size: int) -> bytes:
            return derive_bytes(seed, f"machine {index}: {name}", size)

        return cls(
            device_key=secret("device key", 16),
            root_provisioning_key=secret("root provisioning key", 16),
            owner_epoch=secret("owner epoch", 16),
            seal_key_fuses=secret("seal key fuses", 16),
            report_key_id=secret("report key id", 32),
        )

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


def report_scheme(name: str) -> ReportScheme:
    """The scheme of that name."""
    scheme = REPORT_SCHEMES.get(name)
    if scheme is None:
        raise ConfigError(f"unknown report scheme {name!r}", advice=f"Known are {', '.join(REPORT_SCHEMES)}.")
    return scheme
