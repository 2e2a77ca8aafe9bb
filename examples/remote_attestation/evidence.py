"""Two kinds of evidence: a quote for a peer anywhere, a report for a neighbour on the same machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from confcom import (
    AllOf,
    Collateral,
    IsvProdId,
    LocalEnclave,
    MinIsvSvn,
    MrSigner,
    Policy,
    PolicyError,
    QuoteSource,
    QuoteVerifier,
    ReportBody,
    ReportData,
    TargetInfo,
    TcbStatus,
    TrustRoots,
    accept_quote,
    safe_defaults,
    verify_local_report,
)
from confcom.errors import MismatchError


@dataclass(frozen=True, slots=True)
class ExpectedPeer:
    """The peer that we accept. MRSIGNER names a vendor; only with product id and version does it name a program."""

    mr_signer: bytes
    isv_prod_id: int
    min_isv_svn: int

    def policies(self) -> tuple[Policy, ...]:
        """For a verified quote."""
        return MrSigner((self.mr_signer,)), IsvProdId(self.isv_prod_id), MinIsvSvn(self.min_isv_svn)

    def check(self, body: ReportBody) -> None:
        """Check a report after its MAC; the error names everything that is wrong."""
        findings = (
            (body.mr_signer == self.mr_signer, f"mr-signer: expected {self.mr_signer.hex()}", body.mr_signer.hex()),
            (body.isv_prod_id == self.isv_prod_id, f"isv-prod-id: expected {self.isv_prod_id}", body.isv_prod_id),
            (body.isv_svn >= self.min_isv_svn, f"min-isv-svn: expected {self.min_isv_svn} or more", body.isv_svn),
            (not body.attributes.debug, "no-debug: expected debug off", "debug on"),
        )
        wrong = [f"{expected}, found {found}" for ok, expected, found in findings if not ok]
        if wrong:
            raise PolicyError("authentic, but not acceptable: " + "; ".join(wrong))


@dataclass(frozen=True, slots=True)
class AcceptedPeer:
    """An accepted peer, and the proof in words."""

    body: ReportBody
    proof: str


class Attestation(Protocol):
    """Makes our evidence, and judges the peer's."""

    def make(self, report_data: bytes) -> bytes:
        """Evidence over 64 bytes."""

    def judge(self, evidence: bytes, report_data: bytes) -> AcceptedPeer:
        """Accept the peer's evidence over these 64 bytes, or raise why not."""


class RemoteAttestation:
    """Quotes: the platform vouches for the enclave, Intel (or a simulated authority) for the platform."""

    def __init__(
        self,
        source: QuoteSource,
        expected: ExpectedPeer,
        *,
        roots: TrustRoots,
        collateral: Collateral,
        accept_tcb: frozenset[TcbStatus],
    ) -> None:
        self._source = source
        self._verifier = QuoteVerifier(roots)
        self._collateral = collateral
        # Naming a simulated root on the command line is what accepts a simulated platform.
        simulated = any(root.simulated for root in roots.roots)
        self._acceptable = AllOf(safe_defaults(accept_tcb=accept_tcb, accept_simulated=simulated), *expected.policies())

    def make(self, report_data: bytes) -> bytes:
        """A quote."""
        return self._source.quote(report_data).quote

    def judge(self, evidence: bytes, report_data: bytes) -> AcceptedPeer:
        """Accept a quote that is authentic, of the expected enclave, and over these 64 bytes."""
        now = datetime.now(UTC)  # noqa: TID251 - a program may read the clock; the library is told the time
        policy = AllOf(self._acceptable, ReportData(report_data))
        verified = accept_quote(evidence, self._collateral, policy, now=now, verifier=self._verifier)
        body = verified.quote.body
        if not isinstance(body, ReportBody):
            raise MismatchError("the peer is a TD and no enclave")
        status = verified.tcb_status.value if verified.tcb_status else "unknown"
        warning = "SIMULATED, no hardware protects it, " if verified.simulated else ""
        return AcceptedPeer(body, f"quote authentic ({warning}{verified.root.name}), TCB {status}")


class LocalAttestation:
    """Reports: the processor itself vouches for a neighbour. No quoting enclave, no certificates, no collateral."""

    def __init__(self, enclave: LocalEnclave, expected: ExpectedPeer, peer: TargetInfo) -> None:
        self._enclave = enclave
        self._expected = expected
        self._peer = peer

    def make(self, report_data: bytes) -> bytes:
        """A report that only the peer can check."""
        return bytes(self._enclave.create_report(self._peer, report_data))

    def judge(self, evidence: bytes, report_data: bytes) -> AcceptedPeer:
        """Accept a report that was made on this machine, for us, by the expected enclave, over these 64 bytes."""
        body = verify_local_report(self._enclave, evidence, report_data)
        self._expected.check(body)
        return AcceptedPeer(body, "report MAC good: an enclave on this very machine")
