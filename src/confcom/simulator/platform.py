"""SimulatedPlatform: QE and PCE of a simulated machine behind the port that real platforms fill."""

from __future__ import annotations

from confcom.appraisal.collateral import Collateral
from confcom.errors import KeyNotInitialized, UnsupportedKeyId
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report
from confcom.formats.tdx import TdReportBody
from confcom.platforms.interface import InitializedQuote, QuoteResult
from confcom.simulator.authority import SimulatedAuthority
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.qe3 import QE3, QuotingEnclave
from confcom.simulator.td import quote_td


class SimulatedPlatform:
    """A `Platform` (see `confcom.platforms.interface`) that quotes as Intel's does, below a root of its own.

    `qe` is the release of the QE: of the same signer and product, with a measurement of its own.
    """

    name = "simulated"
    simulated = True

    def __init__(self, machine: SimulatedMachine, authority: SimulatedAuthority, qe: EnclaveDeclaration = QE3) -> None:
        self.machine = machine
        self._declaration = qe
        self.authority = authority
        self._qe: QuotingEnclave | None = None
        self._certified = (machine.tcb, b"")

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """Intel's production QE3: the id that clients hard-code."""
        return (ECDSA_P256_KEY_ID,)

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Launch the QE if need be: at first use, after a TCB change, and when the PCK certificate is another."""
        _check(key_id)
        certified = (self.machine.tcb, self.authority.pck_chain(self.machine))
        if self._qe is None or self._certified != certified:
            self._qe = QuotingEnclave(self.machine, certified[1], self._declaration)
            self._certified = certified
        return InitializedQuote(self._qe.target_info, self._qe.pub_key_id)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size of the next quote in bytes."""
        _check(key_id)
        return self._ready().quote_size

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Check the report's MAC and sign it into a quote."""
        _check(key_id)
        qe = self._ready()
        quote = qe.quote(report)
        if qe_report_info is None:
            return QuoteResult(quote)
        return QuoteResult(quote, qe.report_on(quote, qe_report_info, report.body.cpu_svn))

    def quote_td(self, body: TdReportBody) -> bytes:
        """A quote of a TD on this machine, by its TD QE (see `confcom.simulator.td`)."""
        return quote_td(self.machine, self.authority.pck_chain(self.machine), body)

    def collateral(self) -> Collateral:
        """What verifies this platform's quotes, fresh from its authority."""
        return self.authority.collateral_for(self.machine)

    def _ready(self) -> QuotingEnclave:
        if self._qe is None:
            raise KeyNotInitialized("the attestation key has not been made yet")
        if self._certified[0] != self.machine.tcb:
            raise KeyNotInitialized("the machine's TCB changed since the attestation key was certified")
        return self._qe


def _check(key_id: AttestationKeyId | None) -> None:
    if key_id is not None and key_id is not ECDSA_P256_KEY_ID and not key_id.same_key(ECDSA_P256_KEY_ID):
        raise UnsupportedKeyId("this platform has Intel's ECDSA P-256 QE3 only")
