"""The Provisioning Certification Enclave: owner of the PCK key, which vouches for quoting enclaves."""

from __future__ import annotations

from confcom.errors import NativeError
from confcom.formats.sgx import AttributeFlags, Attributes, Report, TargetInfo
from confcom.simulator.declaration import XFRM_AVX512, EnclaveDeclaration, measure
from confcom.simulator.keys import derive_p256_key, raw_public_key, sign_raw
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.processor import KeyName, KeyRequest

_FLAGS = AttributeFlags.INIT | AttributeFlags.MODE64BIT | AttributeFlags.PROVISIONKEY


class ProvisioningCertificationEnclave:
    """The PCE of a machine at its present TCB; launch another after a TCB change. PCE-ID is 0, as everywhere."""

    def __init__(self, machine: SimulatedMachine) -> None:
        declaration = EnclaveDeclaration(
            mr_enclave=measure(f"enclave confcom simulated PCE {machine.tcb.pce_svn}"),
            mr_signer=measure("signer confcom simulated PCE"),
            isv_prod_id=1,
            isv_svn=machine.tcb.pce_svn,
            attributes=Attributes(int(_FLAGS), XFRM_AVX512),
        )
        self._enclave = machine.launch(declaration)
        provisioning = self._enclave.get_key(KeyRequest(KeyName.PROVISION, isv_svn=machine.tcb.pce_svn))
        self._pck_key = derive_p256_key(provisioning, "PCK")

    @property
    def target_info(self) -> TargetInfo:
        """Whom a quoting enclave must report to."""
        return self._enclave.target_info

    @property
    def pck_public_key(self) -> bytes:
        """x‖y, 64 bytes: what the authority certifies for this machine at this TCB."""
        return raw_public_key(self._pck_key)

    def certify(self, report: Report) -> bytes:
        """`certify_enclave`: the PCK key's signature r‖s over the 384 bytes of a report made for this PCE."""
        self._enclave.verify_report(report)
        if not report.body.attributes.flags & AttributeFlags.PROVISIONKEY:
            raise NativeError("the PCE certifies only enclaves that may use the provisioning key")
        return sign_raw(self._pck_key, bytes(report.body))
