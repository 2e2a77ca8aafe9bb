"""The enclaves that make quotes on a simulated machine: PCE and Quoting Enclave ("QE3"), and the QE of TDs.

Their identities are those that Intel's QE identities describe, so that every verifier walks the path it walks for real
quotes; what they chain to is the simulated authority. PCE and QE are of the machine's present TCB: launch others after
a TCB change.

A machine of TDX 1.5 can replace its TDX module under running TDs: a TD then reports the SVNs of the module that
launched it (TEE_TCB_SVN) and of the one that runs now (TEE_TCB_SVN_2). The caller sets both.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from confcom.errors import NativeError
from confcom.formats.attestation_key_id import INTEL_QE3_MR_SIGNER, INTEL_TD_QE_MR_SIGNER
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
from confcom.formats.sgx import (
    BODY,
    AttributeFlags,
    Attributes,
    QeReportInfo,
    Report,
    TargetInfo,
    TdAttributeFlags,
    TdReportBody,
    TdReportBody10,
    TdReportBody15,
)
from confcom.simulator.declaration import XFRM_AVX512, EnclaveDeclaration, measure
from confcom.simulator.machine import (
    SimulatedEnclave,
    SimulatedMachine,
    aes_cmac,
    derive_p256_key,
    raw_public_key,
    sign_raw,
)

_ATTRIBUTES = Attributes(int(AttributeFlags.INIT | AttributeFlags.MODE64BIT | AttributeFlags.PROVISIONKEY), XFRM_AVX512)


class ProvisioningCertificationEnclave:
    """The PCE of a machine: owner of the PCK key, which vouches for quoting enclaves. PCE-ID is 0, as everywhere."""

    def __init__(self, machine: SimulatedMachine) -> None:
        declaration = EnclaveDeclaration(
            mr_enclave=measure(f"enclave confcom simulated PCE {machine.tcb.pce_svn}"),
            mr_signer=measure("signer confcom simulated PCE"),
            isv_prod_id=1,
            isv_svn=machine.tcb.pce_svn,
            attributes=_ATTRIBUTES,
        )
        self._enclave = machine.launch(declaration)
        self._pck_key = derive_p256_key(self._enclave.provisioning_key(), "PCK")

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


QE3_ISV_SVN = 8
QE_AUTHENTICATION_DATA = bytes(range(32))
"""What Intel's QE puts there; one verifier takes no other length."""
QE3 = EnclaveDeclaration(
    mr_enclave=measure("enclave confcom simulated QE3"),
    mr_signer=INTEL_QE3_MR_SIGNER,
    isv_prod_id=1,
    isv_svn=QE3_ISV_SVN,
    attributes=_ATTRIBUTES,
)
TD_QE = EnclaveDeclaration(
    mr_enclave=measure("enclave confcom simulated TD QE"),
    mr_signer=INTEL_TD_QE_MR_SIGNER,
    isv_prod_id=2,
    isv_svn=4,
    attributes=_ATTRIBUTES,
)


class QuotingEnclave:
    """The QE of a machine, its attestation key certified. It turns a local report into a quote.

    `pck_chain` is the PEM of PCK certificate, its CA and the root, in this order.
    """

    def __init__(self, machine: SimulatedMachine, pck_chain: bytes, declaration: EnclaveDeclaration = QE3) -> None:
        self._enclave = machine.launch(declaration)
        # Sealed to signer and TCB, like the blob of Intel's QE: the same after a restart, another after an update.
        sealed = self._enclave.seal_key(b"ECDSA attestation key", isv_svn=declaration.isv_svn)
        self._key = derive_p256_key(sealed, "attestation key")
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
        return aes_cmac(self._enclave.seal_key(b"QE_ID", isv_svn=0, cpu_svn=bytes(16)), b"QE_ID")

    def quote(self, report: Report) -> bytes:
        """Check the report's MAC, then sign its body; `ReportRejected` if it was not made for this QE here."""
        self._enclave.verify_report(report)
        signed = self._before_body + bytes(report)[BODY]
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


TDX_1_5 = bytes([6, 1, 3]).ljust(16, b"\0")
"""SVNs of a module of version 1 that is up to date: module, its version, late microcode update."""


def td_report(name: str, report_data: bytes, tee_tcb_svn: bytes = TDX_1_5) -> TdReportBody10:
    """The report body of a TD of that name over 64 bytes, launched by a module of those SVNs (16 bytes)."""
    return TdReportBody10(
        tee_tcb_svn=tee_tcb_svn,
        mr_seam=_measure("TDX module"),
        mr_signer_seam=bytes(48),
        seam_attributes=bytes(8),
        td_attributes=int(TdAttributeFlags.SEPT_VE_DISABLE),
        xfam=XFRM_AVX512,
        mr_td=_measure(f"TD {name}"),
        mr_config_id=bytes(48),
        mr_owner=bytes(48),
        mr_owner_config=bytes(48),
        rtmr0=_measure(f"TD {name} firmware"),
        rtmr1=_measure(f"TD {name} kernel"),
        rtmr2=bytes(48),
        rtmr3=bytes(48),
        report_data=report_data,
    )


def td_report_1_5(
    name: str, report_data: bytes, tee_tcb_svn: bytes = TDX_1_5, current: bytes = TDX_1_5
) -> TdReportBody15:
    """The same of TDX 1.5; `current` are the SVNs of the module that runs now."""
    return TdReportBody15(td_report(name, report_data, tee_tcb_svn), current, bytes(48))


def quote_td(machine: SimulatedMachine, pck_chain: bytes, body: TdReportBody) -> bytes:
    """The TD QE's quote: version 4 of a body of TDX 1.0, version 5 of a later one. `pck_chain` is PEM."""
    enclave = machine.launch(TD_QE)
    key = derive_p256_key(machine.ppid, "TD QE attestation key")
    version = 4 if isinstance(body, TdReportBody10) else 5
    public_key = raw_public_key(key)
    section = QuoteSignature(bytes(64), public_key, certify(enclave, public_key, machine, pck_chain))
    unsigned = Quote(header(version, TeeType.TDX, machine.ppid), body, section)
    signature = QuoteSignature(sign_raw(key, unsigned.signed_bytes), public_key, section.certification)
    return bytes(Quote(unsigned.header, body, signature))


def _measure(what: str) -> bytes:
    return hashlib.sha384(f"confcom simulated {what}".encode()).digest()
