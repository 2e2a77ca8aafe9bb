"""The Provisioning Certification Enclave: owner of the PCK key, which vouches for quoting enclaves."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from confcom.errors import NativeError, ReportRejected
from confcom.formats.sgx import AttributeFlags, Attributes, Report, TargetInfo
from confcom.simulator.declaration import XFRM_AVX512, EnclaveDeclaration, measure
from confcom.simulator.keys import derive_p256_key, raw_public_key, sign_raw
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.processor import KeyName, KeyRequest

CRYPTO_SUITE_RSA_OAEP_3072 = 1
_RSA_3072_BYTES = 384
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
        self._ppid = machine.ppid
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

    def encrypt_ppid(self, report: Report, key: RSAPublicKey) -> bytes:
        """`get_pc_info`: the PPID under the requester's RSA-3072 key (OAEP, SHA-256), 384 bytes.

        The requester's report data must be SHA-256(crypto suite u8 ‖ n ‖ e), n and e big-endian in 384 and 4 bytes.
        Encryption is the one thing here that is not repeatable.
        """
        self._enclave.verify_report(report)
        _check_requester(report, key)
        scheme = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
        return key.encrypt(self._ppid, scheme)

    def certify(self, report: Report) -> bytes:
        """`certify_enclave`: the PCK key's signature r‖s over the 384 bytes of a report made for this PCE."""
        self._enclave.verify_report(report)
        if not report.body.attributes.flags & AttributeFlags.PROVISIONKEY:
            raise NativeError("the PCE certifies only enclaves that may use the provisioning key")
        return sign_raw(self._pck_key, bytes(report.body))


def _check_requester(report: Report, key: RSAPublicKey) -> None:
    numbers = key.public_numbers()
    if key.key_size != _RSA_3072_BYTES * 8 or numbers.e >= 1 << 32:
        raise NativeError(f"the PCE encrypts for RSA-3072 keys, not for {key.key_size} bits")
    modulus, exponent = numbers.n.to_bytes(_RSA_3072_BYTES, "big"), numbers.e.to_bytes(4, "big")
    bound = hashlib.sha256(bytes([CRYPTO_SUITE_RSA_OAEP_3072]) + modulus + exponent).digest()
    if report.body.report_data[:32] != bound:
        raise ReportRejected("the report is not over this RSA key")
