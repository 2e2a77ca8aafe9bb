"""What verification proved: a quote whose every signature leads to a trusted root."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import ClassVar

from confcom.appraisal.collateral import VerifiedCollateral, Window
from confcom.appraisal.findings import Check
from confcom.appraisal.tcb import TcbEvaluation
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote, TeeType
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.proof import Proof
from confcom.pki.roots import TrustRoot


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifiedQuote(Proof):
    """An authentic quote. Only `QuoteVerifier.verify` makes one.

    Authentic is not acceptable: `tcb_status`, `stale` and the identity inside are for a policy to judge (`appraise`).
    `stale` lists what was expired or not yet valid at `verified_at`; the TCB status is then the one it would have.
    """

    made_by: ClassVar[str] = "QuoteVerifier.verify"

    quote: Quote
    pck: PckExtension
    tcb: TcbEvaluation
    collateral: VerifiedCollateral
    root: TrustRoot
    stale: tuple[Window, ...]
    verified_at: datetime
    checks: tuple[Check, ...]
    proof: InitVar[object] = None

    def __repr__(self) -> str:
        status = self.tcb_status.value if self.tcb_status else "not supported"
        marks = (", simulated" if self.simulated else "") + (", stale collateral" if self.stale else "")
        version = self.quote.header.version
        return f"<VerifiedQuote {self.tee.name} v{version}, FMSPC {self.pck.fmspc.hex()}, TCB {status}{marks}>"

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
