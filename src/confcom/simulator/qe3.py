"""The ECDSA Quoting Enclave ("QE3"): turns a local report into a quote that the world can check.

Its identity is the one that Intel's QE identity describes, so that every verifier walks the path it walks for real
quotes; what it chains to is the simulated authority.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from confcom.formats.attestation_key_id import INTEL_QE3_MR_SIGNER
from confcom.formats.quote import (
    INTEL_QE_VENDOR_ID,
    AttestationKeyType,
    CertificationData,
    CertificationDataType,
    QeReportCertification,
    Quote,
    QuoteHeader,
    QuoteSignature,
    TeeType,
)
from confcom.formats.sgx import AttributeFlags, Attributes, QeReportInfo, Report, TargetInfo
from confcom.simulator.declaration import XFRM_AVX512, EnclaveDeclaration, measure
from confcom.simulator.keys import aes_cmac, derive_p256_key, raw_public_key, sign_raw
from confcom.simulator.machine import SimulatedEnclave, SimulatedMachine
from confcom.simulator.pce import ProvisioningCertificationEnclave
from confcom.simulator.processor import KeyName, KeyRequest

QE3_ISV_SVN = 8
QE_AUTHENTICATION_DATA = bytes(range(32))
"""What Intel's QE puts there; one verifier takes no other length."""

_FLAGS = AttributeFlags.INIT | AttributeFlags.MODE64BIT | AttributeFlags.PROVISIONKEY

QE3 = EnclaveDeclaration(
    mr_enclave=measure("enclave confcom simulated QE3"),
    mr_signer=INTEL_QE3_MR_SIGNER,
    isv_prod_id=1,
    isv_svn=QE3_ISV_SVN,
    attributes=Attributes(int(_FLAGS), XFRM_AVX512),
)


class QuotingEnclave:
    """The QE of a machine at its present TCB, its attestation key certified; launch another after a TCB change.

    `pck_chain` is the PEM of PCK certificate, its CA and the root, in this order.
    """

    def __init__(self, machine: SimulatedMachine, pck_chain: bytes, declaration: EnclaveDeclaration = QE3) -> None:
        self._enclave = machine.launch(declaration)
        self._key = _attestation_key(self._enclave)
        self._header = header(3, TeeType.SGX, self.qe_id, declaration.isv_svn, machine.tcb.pce_svn)
        public_key = raw_public_key(self._key)
        certification = certify(self._enclave, public_key, machine, pck_chain)
        self.pub_key_id = certification.qe_report.report_data[:32]
        # Quotes of one key differ in the report body and in the signature over it; the rest is made once.
        section = QuoteSignature(bytes(64), public_key, certification)
        unsigned = bytes(Quote(self._header, certification.qe_report, section))
        self.quote_size = len(unsigned)
        self._before_body, self._before_signature = unsigned[:48], unsigned[432:436]
        self._after_signature = unsigned[500:]

    @property
    def target_info(self) -> TargetInfo:
        """Whom applications must report to."""
        return self._enclave.target_info

    @property
    def qe_id(self) -> bytes:
        """16 bytes that name this platform to collateral caches; they outlive TCB changes."""
        request = KeyRequest(KeyName.SEAL, cpu_svn=bytes(16), key_id=b"QE_ID".ljust(32, b"\0"))
        return aes_cmac(self._enclave.get_key(request), b"QE_ID")

    def quote(self, report: Report) -> bytes:
        """Check the report's MAC, then sign its body; `ReportRejected` if it was not made for this QE here."""
        self._enclave.verify_report(report)
        signed = self._before_body + bytes(report.body)
        return b"".join((signed, self._before_signature, sign_raw(self._key, signed), self._after_signature))

    def report_on(self, quote: bytes, info: QeReportInfo, report: Report) -> QeReportInfo:
        """The QE's own report over nonce and quote, for the enclave that asked with `report`."""
        binding = hashlib.sha256(info.nonce + quote).digest()
        made = self._enclave.create_report(info.app_enclave_target_info, binding + bytes(32), like=report)
        return replace(info, qe_report=made)


def certify(
    enclave: SimulatedEnclave, public_key: bytes, machine: SimulatedMachine, pck_chain: bytes
) -> QeReportCertification:
    """A QE's report over its attestation key (x‖y, 64 bytes), signed by the machine's PCE, with the PCK chain (PEM)."""
    pce = ProvisioningCertificationEnclave(machine)
    key_id = hashlib.sha256(public_key + QE_AUTHENTICATION_DATA).digest()
    report = enclave.create_report(pce.target_info, key_id + bytes(32))
    return QeReportCertification(
        qe_report=report.body,
        qe_report_signature=pce.certify(report),
        qe_authentication_data=QE_AUTHENTICATION_DATA,
        certification_data=CertificationData(CertificationDataType.PCK_CERTIFICATE_CHAIN, pck_chain + b"\0"),
    )


def _attestation_key(enclave: SimulatedEnclave) -> EllipticCurvePrivateKey:
    # Sealed to signer and TCB, like the blob of Intel's QE: the same after every restart, another after an update.
    request = KeyRequest(
        KeyName.SEAL,
        isv_svn=enclave.declaration.isv_svn,
        key_id=b"ECDSA attestation key".ljust(32, b"\0"),
    )
    return derive_p256_key(enclave.get_key(request), "attestation key")


def header(version: int, tee: TeeType, qe_id: bytes, qe_svn: int = 0, pce_svn: int = 0) -> QuoteHeader:
    """The header of a quote; only version 3 has SVNs in it."""
    made = QuoteHeader(
        version=version,
        attestation_key_type=AttestationKeyType.ECDSA_P256,
        tee_type=tee,
        qe_svn=qe_svn,
        pce_svn=pce_svn,
        qe_vendor_id=INTEL_QE_VENDOR_ID,
        user_data=qe_id + bytes(4),
    )
    return QuoteHeader.parse(bytes(made))  # a parsed record remembers its bytes
