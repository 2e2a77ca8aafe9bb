"""TDs on a simulated machine: their report bodies, and the TD QE that signs them into quotes.

A machine of TDX 1.5 can replace its TDX module under running TDs: a TD then reports the SVNs of the module that
launched it (TEE_TCB_SVN) and of the one that runs now (TEE_TCB_SVN_2). The caller sets both.
"""

from __future__ import annotations

import hashlib

from confcom.formats.attestation_key_id import INTEL_TD_QE_MR_SIGNER
from confcom.formats.quote import Quote, QuoteSignature, TeeType
from confcom.formats.sgx import AttributeFlags, Attributes
from confcom.formats.tdx import TdAttributeFlags, TdReportBody, TdReportBody10, TdReportBody15
from confcom.simulator.declaration import XFRM_AVX512, EnclaveDeclaration, measure
from confcom.simulator.keys import derive_p256_key, raw_public_key, sign_raw
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.qe3 import certify, header

TD_QE = EnclaveDeclaration(
    mr_enclave=measure("enclave confcom simulated TD QE"),
    mr_signer=INTEL_TD_QE_MR_SIGNER,
    isv_prod_id=2,
    isv_svn=4,
    attributes=Attributes(
        int(AttributeFlags.INIT | AttributeFlags.MODE64BIT | AttributeFlags.PROVISIONKEY), XFRM_AVX512
    ),
)
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
