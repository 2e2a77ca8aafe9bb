"""Collateral: what Intel says about a platform, as received and as verified (dcap.md §3, §4.2, §4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from confcom.appraisal.findings import Check
from confcom.formats.enclave_identity import EnclaveIdentity
from confcom.formats.tcb_info import TcbInfo
from confcom.pki.crl import Crl
from confcom.pki.roots import TrustRoot, TrustRoots
from confcom.pki.validity import Window

__all__ = ["Collateral", "VerifiedCollateral", "Window", "verify_collateral"]


@dataclass(frozen=True, slots=True)
class Collateral:
    """The parts as received: chains in PEM, CRLs in any of their encodings, signed JSON untouched."""

    tcb_info_issuer_chain: bytes
    tcb_info: bytes
    qe_identity_issuer_chain: bytes
    qe_identity: bytes
    root_ca_crl: bytes
    pck_crl: bytes
    pck_crl_issuer_chain: bytes
    source: str
    pck_certificate_chain: bytes | None = None

    def digest(self) -> bytes:
        """SHA-256 over the parts, each with its length; the source does not count."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class VerifiedCollateral:
    """Collateral whose every signature is good; only `verify_collateral` makes one. Ask `stale` about the time."""

    tcb_info: TcbInfo
    qe_identity: EnclaveIdentity
    pck_crl: Crl
    pck_ca: x509.Certificate
    root_ca_crl: Crl
    root: TrustRoot
    windows: tuple[Window, ...]
    checks: tuple[Check, ...]
    source: str

    def stale(self, now: datetime) -> tuple[Window, ...]:
        """The items that are expired or not yet valid at `now`; at exactly its end an item is still fresh."""
        raise NotImplementedError

    @property
    def earliest_issue(self) -> datetime:
        """The oldest beginning of all windows."""
        raise NotImplementedError

    @property
    def earliest_expiration(self) -> datetime:
        """The first end of all windows."""
        raise NotImplementedError

    @property
    def simulated(self) -> bool:
        """Whether all this stands on a simulated root."""
        return self.root.simulated


def verify_collateral(collateral: Collateral, *, roots: TrustRoots) -> VerifiedCollateral:
    """Verify every signature of the collateral, whatever the time."""
    raise NotImplementedError
