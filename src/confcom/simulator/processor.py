"""The secrets of one simulated CPU, and EGETKEY's derivation from them.

Intel SDM vol. 3D, EGETKEY: the dependencies of every key are laid out in one struct, and the key is derived from that
struct under the CPU's device key. Intel does not publish the derivation itself; here it is AES-128-CMAC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from operator import gt
from typing import Annotated, Self

from confcom.errors import NativeError
from confcom.formats.codec import U16, U32, U64, Record, raw
from confcom.formats.sgx import AttributeFlags, ReportBody, TargetInfo
from confcom.simulator.keys import aes_cmac, derive_bytes

PKCS1_PADDING = b"\x00\x01" + b"\xff" * 330 + bytes.fromhex("003031300d060960864801650304020105000420")
"""HARDCODED_PKCS1_5_PADDING of the SDM, 352 bytes."""

REQUIRED_SEALING_MASK = AttributeFlags.INIT | AttributeFlags.DEBUG
"""The attributes that every seal and provisioning key depends on."""


class KeyName(IntEnum):
    """KEYNAME of EGETKEY."""

    EINITTOKEN = 0
    PROVISION = 1
    PROVISION_SEAL = 2
    REPORT = 3
    SEAL = 4


class KeyPolicy(IntFlag):
    """KEYPOLICY of EGETKEY: which parts of the identity go into a seal key."""

    MRENCLAVE = 1 << 0
    MRSIGNER = 1 << 1
    NOISVPRODID = 1 << 2
    CONFIGID = 1 << 3
    ISVFAMILYID = 1 << 4
    ISVEXTPRODID = 1 << 5


@dataclass(frozen=True, slots=True)
class KeyDependencies(Record):
    """TMP_KEYDEPENDENCIES of the SDM, 642 bytes, in the SDM's order."""

    key_name: Annotated[int, U16]
    isv_family_id: Annotated[bytes, raw(16)]
    isv_ext_prod_id: Annotated[bytes, raw(16)]
    isv_prod_id: Annotated[int, U16]
    isv_svn: Annotated[int, U16]
    owner_epoch: Annotated[bytes, raw(16)]
    attribute_flags: Annotated[int, U64]
    attribute_xfrm: Annotated[int, U64]
    attribute_flags_mask: Annotated[int, U64]
    attribute_xfrm_mask: Annotated[int, U64]
    mr_enclave: Annotated[bytes, raw(32)]
    mr_signer: Annotated[bytes, raw(32)]
    key_id: Annotated[bytes, raw(32)]
    seal_key_fuses: Annotated[bytes, raw(16)]
    cpu_svn: Annotated[bytes, raw(16)]
    padding: Annotated[bytes, raw(352)]
    misc_select: Annotated[int, U32]
    misc_mask: Annotated[int, U32]
    key_policy: Annotated[int, U16]
    config_id: Annotated[bytes, raw(64)]
    config_svn: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What an enclave asks of EGETKEY. `cpu_svn` None means the present one; masks are over flags and MISCSELECT."""

    name: KeyName
    policy: KeyPolicy = KeyPolicy.MRSIGNER
    isv_svn: int = 0
    cpu_svn: bytes | None = None
    attribute_mask: int = 0
    misc_mask: int = 0
    key_id: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class Processor:
    """Fuses and registers of one CPU. Nothing of it may reach a log or an answer."""

    device_key: bytes = field(repr=False)
    provisioning_key: bytes = field(repr=False)
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
            provisioning_key=secret("root provisioning key", 16),
            owner_epoch=secret("owner epoch", 16),
            seal_key_fuses=secret("seal key fuses", 16),
            report_key_id=secret("report key id", 32),
        )

    def report_key(self, target: TargetInfo, key_id: bytes, cpu_svn: bytes) -> bytes:
        """The key that EREPORT MACs a report for `target` with, and that only the target can ask for."""
        dependencies = KeyDependencies(
            key_name=KeyName.REPORT,
            isv_family_id=bytes(16),
            isv_ext_prod_id=bytes(16),
            isv_prod_id=0,
            isv_svn=0,
            owner_epoch=self.owner_epoch,
            attribute_flags=target.attributes.flags,
            attribute_xfrm=target.attributes.xfrm,
            attribute_flags_mask=0,
            attribute_xfrm_mask=0,
            mr_enclave=target.mr_enclave,
            mr_signer=bytes(32),
            key_id=key_id,
            seal_key_fuses=self.seal_key_fuses,
            cpu_svn=cpu_svn,
            padding=PKCS1_PADDING,
            misc_select=target.misc_select,
            misc_mask=0,
            key_policy=0,
            config_id=target.config_id,
            config_svn=target.config_svn,
        )
        return aes_cmac(self.device_key, bytes(dependencies))

    def get_key(self, enclave: ReportBody, request: KeyRequest) -> bytes:
        """EGETKEY for seal and provisioning keys, 16 bytes; a refusal is a `NativeError` as in the SDM."""
        _check_request(enclave, request)
        if request.name == KeyName.PROVISION:
            return aes_cmac(self.provisioning_key, bytes(self._dependencies(enclave, request)))
        return aes_cmac(self.device_key, bytes(self._dependencies(enclave, request)))

    def _dependencies(self, enclave: ReportBody, request: KeyRequest) -> KeyDependencies:
        # A provisioning key must survive a change of owner and be known to Intel: no epoch, no seal fuses, no key id.
        sealing = request.name == KeyName.SEAL
        policy = request.policy if sealing else KeyPolicy.MRSIGNER
        flags_mask = request.attribute_mask | REQUIRED_SEALING_MASK
        return KeyDependencies(
            key_name=request.name,
            isv_family_id=enclave.isv_family_id if policy & KeyPolicy.ISVFAMILYID else bytes(16),
            isv_ext_prod_id=enclave.isv_ext_prod_id if policy & KeyPolicy.ISVEXTPRODID else bytes(16),
            isv_prod_id=0 if policy & KeyPolicy.NOISVPRODID else enclave.isv_prod_id,
            isv_svn=request.isv_svn,
            owner_epoch=self.owner_epoch if sealing else bytes(16),
            attribute_flags=enclave.attributes.flags & flags_mask,
            attribute_xfrm=0,
            attribute_flags_mask=request.attribute_mask,
            attribute_xfrm_mask=0,
            mr_enclave=enclave.mr_enclave if policy & KeyPolicy.MRENCLAVE else bytes(32),
            mr_signer=enclave.mr_signer if policy & KeyPolicy.MRSIGNER else bytes(32),
            key_id=request.key_id if sealing else bytes(32),
            seal_key_fuses=self.seal_key_fuses if sealing else bytes(16),
            cpu_svn=enclave.cpu_svn if request.cpu_svn is None else request.cpu_svn,
            padding=PKCS1_PADDING,
            misc_select=enclave.misc_select & request.misc_mask,
            misc_mask=request.misc_mask ^ 0xFFFFFFFF,
            key_policy=int(policy) if sealing else 0,
            config_id=enclave.config_id if policy & KeyPolicy.CONFIGID else bytes(64),
            config_svn=enclave.config_svn if policy & KeyPolicy.CONFIGID else 0,
        )


def _check_request(enclave: ReportBody, request: KeyRequest) -> None:
    flags = enclave.attributes.flags
    if request.name not in {KeyName.SEAL, KeyName.PROVISION}:
        raise NativeError(f"EGETKEY of this CPU has no {request.name.name} key: SGX_INVALID_KEYNAME")
    if request.name == KeyName.PROVISION and not flags & AttributeFlags.PROVISIONKEY:
        raise NativeError("the enclave's attributes do not grant the provisioning key: SGX_INVALID_ATTRIBUTE")
    if request.cpu_svn is not None and any(map(gt, request.cpu_svn, enclave.cpu_svn)):
        raise NativeError("the CPUSVN asked for is beyond the present one: SGX_INVALID_CPUSVN")
    if request.isv_svn > enclave.isv_svn:
        raise NativeError(f"ISVSVN {request.isv_svn} is above the enclave's {enclave.isv_svn}: SGX_INVALID_ISVSVN")
    kss_only = KeyPolicy.NOISVPRODID | KeyPolicy.CONFIGID | KeyPolicy.ISVFAMILYID | KeyPolicy.ISVEXTPRODID
    if request.policy & kss_only and not flags & AttributeFlags.KSS:
        raise NativeError("this key policy needs an enclave with KSS: #GP(0)")
