"""What verification proved: a quote, every signature of which leads to a trusted root."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import ClassVar

from confcom.appraisal.collateral import VerifiedCollateral
from confcom.appraisal.findings import Check, passed
from confcom.appraisal.tcb import TcbEvaluation
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote, TeeType
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbStatus
from confcom.formats.tdx import td_base
from confcom.pki.chain import VerifiedChain, Window
from confcom.pki.proof import Proof
from confcom.pki.roots import TrustRoot

_QUOTE_CHECKS = (
    passed("qe-report-signature", "signed by the PCK key", "good signature"),
    passed("attestation-key-binding", "vouched for by the QE", "the same key"),
    passed("qe-identity", "Intel's quoting enclave", "matches the QE identity"),
    passed("quote-signature", "signed by the attestation key", "good signature"),
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifiedQuote(Proof):
    """An authentic quote. Only `QuoteVerifier.verify` makes one.

    Authentic is not acceptable: `tcb_status`, `stale` and the identity inside are for a policy to judge (`appraise`).
    `stale` lists what was expired or not yet valid at `verified_at`; the TCB status is then the one it would have.
    """

    made_by: ClassVar[str] = "QuoteVerifier.verify"

    quote: Quote
    chain: VerifiedChain
    tcb: TcbEvaluation
    collateral: VerifiedCollateral
    stale: tuple[Window, ...]
    verified_at: datetime
    proof: InitVar[object] = None

    def __repr__(self) -> str:
        status = self.tcb_status.value if self.tcb_status else "not supported"
        marks = (", simulated" if self.simulated else "") + (", stale collateral" if self.stale else "")
        body = self.quote.body
        if isinstance(body, ReportBody):
            who = f"enclave {body.mr_enclave.hex()[:16]}..., product {body.isv_prod_id}, version {body.isv_svn}"
        else:
            who = f"TD {td_base(body).mr_td.hex()[:16]}..."
        form = f"{self.tee.name} v{self.quote.header.version}"
        return f"<VerifiedQuote {form}, {who}, FMSPC {self.pck.fmspc.hex()}, TCB {status}{marks}>"

    @property
    def pck(self) -> PckExtension:
        """What the PCK certificate says about the platform."""
        return self.chain.extension

    @property
    def root(self) -> TrustRoot:
        """The trusted root that the PCK certificate leads to."""
        return self.chain.root

    @property
    def checks(self) -> tuple[Check, ...]:
        """The steps of the verification, all of which passed."""
        trusted = passed("pck-chain", "a chain to a trusted root", self.root.name)
        return trusted, *self.collateral.checks, *self._platform_checks(), *_QUOTE_CHECKS

    def _platform_checks(self) -> tuple[Check, ...]:
        issuer, pck = self.chain.intermediates[0], self.pck
        revocation, match = "pck-revocation", "tcb-info-match"
        identity = self.collateral.qe_identity.id
        return (
            passed(revocation, f"PCK CRL issuer {issuer.subject_text}", issuer.subject_text),
            passed(revocation, f"PCK CRL issuer's key {issuer.key_digest}", issuer.key_digest),
            passed(revocation, "the PCK certificate not revoked", "not revoked"),
            passed(revocation, "the PCK CA not revoked", "not revoked"),
            passed(match, f"TEE {self.tee.name}", self.tee.name),
            passed(match, f"FMSPC {pck.fmspc.hex()}", pck.fmspc.hex()),
            passed(match, f"PCE-ID {pck.pce_id.hex()}", pck.pce_id.hex()),
            passed(match, f"enclave identity {identity}", identity),
        )

    @property
    def simulated(self) -> bool:
        """Whether the root is not Intel's: then no hardware vouches for anything here."""
        return self.root.simulated

    @property
    def tee(self) -> TeeType:
        """SGX or TDX."""
        return self.quote.tee

    @property
    def tcb_status(self) -> TcbStatus | None:
        """Intel's status of the platform, QE and TDX module together; None when no level matches."""
        return self.tcb.status

    @property
    def launch_tcb(self) -> TcbEvaluation | None:
        """The TCB by the TDX module that launched the TD; None for enclaves and TDX 1.0, which have one TCB."""
        return self.tcb.launch

    @property
    def current_tcb(self) -> TcbEvaluation | None:
        """The TCB by the TDX module that runs now (TEE_TCB_SVN_2); None for enclaves and TDX 1.0."""
        return self.tcb.current

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave or TD chose."""
        return self.quote.report_data

    @property
    def tcb_evaluation_data_number(self) -> int:
        """The lower of the numbers of TCB info and QE identity."""
        info, identity = self.collateral.tcb_info, self.collateral.qe_identity
        return min(info.tcb_evaluation_data_number, identity.tcb_evaluation_data_number)
