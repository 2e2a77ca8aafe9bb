"""Collateral: what Intel says about a platform, as received and as verified (dcap.md §3, §4.2, §4.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime
from typing import ClassVar, TypeVar

from cryptography import x509

from confcom.appraisal.findings import Check
from confcom.errors import CollateralInvalid, FormatError, RevokedError, VerificationError
from confcom.formats.arguments import checked_bytes, checked_time, checked_type
from confcom.formats.enclave_identity import EnclaveIdentity, SignedEnclaveIdentity
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo
from confcom.pki import ecdsa
from confcom.pki.certificate import common_name, parse_certificates
from confcom.pki.chain import ChainKind, VerifiedChain, Window, verify_chain
from confcom.pki.crl import Crl
from confcom.pki.proof import PROOF, Proof
from confcom.pki.roots import TrustRoot, TrustRoots

__all__ = ["Collateral", "VerifiedCollateral", "Window", "verify_collateral"]

_SIGNER_REVOKED = "Fetch fresh collateral: what this certificate signed must not be used any more."

_TITLES = {
    "pck_crl_issuer_chain": "issuer chain of the PCK CRL",
    "tcb_info_issuer_chain": "issuer chain of the TCB info",
    "qe_identity_issuer_chain": "issuer chain of the QE identity",
    "root_ca_crl": "root CA CRL",
    "pck_crl": "PCK CRL",
    "tcb_info": "TCB info",
    "qe_identity": "QE identity",
}
PCK_CHAIN_BESIDE = "the PCK chain beside the quote"
"""The name of a chain that was given with the quote, and not in a folder of collateral."""
T = TypeVar("T")


def digest_of(parts: Iterable[bytes]) -> bytes:
    """SHA-256 (32 bytes) over the parts in order, each after its length as u64 big-endian."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


class _Digested:
    """Room for the digest beside the fields."""

    __slots__ = ("_digest",)
    _digest: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Collateral(_Digested):
    """The parts as received: chains in PEM, CRLs in any of their encodings, signed JSON untouched.

    `source` says where they came from, for people; `places` where each part was read, if that says more.
    `pck_certificate_chain` (PEM) is the platform's own chain, for quotes that only name their platform (certification
    data of type 1 to 3). Other quotes are verified by their own.
    """

    tcb_info_issuer_chain: bytes
    tcb_info: bytes
    qe_identity_issuer_chain: bytes
    qe_identity: bytes
    root_ca_crl: bytes
    pck_crl: bytes
    pck_crl_issuer_chain: bytes
    source: str
    pck_certificate_chain: bytes | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        checked_type(self.source, str, "source of the collateral")
        for part in _TITLES:
            checked_bytes(getattr(self, part), part)
        if self.pck_certificate_chain is not None:
            checked_bytes(self.pck_certificate_chain, "pck_certificate_chain")

    def with_pck_chain(self, chain: bytes) -> Collateral:
        """The same with a PCK chain (PEM) that came beside the quote."""
        places = {**self.places, "pck_certificate_chain": PCK_CHAIN_BESIDE}
        return replace(self, pck_certificate_chain=chain, places=places)

    def place(self, part: str) -> str:
        """The name of a part for people: its file, or what it is and where it came from."""
        return self.places.get(part) or f"the {_TITLES.get(part, 'PCK certificate chain')} from {self.source}"

    @contextmanager
    def blamed(self, part: str) -> Iterator[None]:
        """Within the block, an error is the fault of this part: a `CollateralInvalid` that names it."""
        try:
            yield
        except (FormatError, VerificationError) as error:
            raise CollateralInvalid.of(error, self.place(part)) from error

    def __repr__(self) -> str:
        return f"<Collateral from {self.source}>"

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what is verified: the DER of chains and CRLs, and the signed JSON.

        How they are wrapped does not count, nor where they came from. Malformed parts are `CollateralInvalid`.
        """
        # Kept, because a verifier asks for every quote that it judges; the parts never change.
        if not hasattr(self, "_digest"):
            object.__setattr__(self, "_digest", self._compute_digest())
        return self._digest

    def _compute_digest(self) -> bytes:
        return digest_of(
            (
                *(digest_of(self._read(part, _certificates)) for part in _TITLES if part.endswith("_chain")),
                *(self._read(part, Crl.parse).der for part in ("root_ca_crl", "pck_crl")),
                *(document.strip(b" \t\r\n\0") for document in (self.tcb_info, self.qe_identity)),
            )
        )

    def _read(self, part: str, parse: Callable[[bytes], T]) -> T:
        with self.blamed(part):
            return parse(getattr(self, part))


def _certificates(data: bytes) -> tuple[bytes, ...]:
    return parse_certificates(data, structure="chain")


@dataclass(frozen=True, slots=True, repr=False)
class VerifiedCollateral(Proof):
    """Collateral whose every signature is good; only `verify_collateral` makes one. Ask `stale` about the time.

    `pck_ca` is the certificate of the CA that issued `pck_crl`; a PCK certificate can be looked up there only if
    the same CA issued it. `statement` is a digest (32 bytes) of all that was signed, without the signatures.
    """

    made_by: ClassVar[str] = "verify_collateral"

    tcb_info: TcbInfo
    qe_identity: EnclaveIdentity
    pck_crl: Crl
    pck_ca: x509.Certificate
    root_ca_crl: Crl
    root: TrustRoot
    windows: tuple[Window, ...]
    checks: tuple[Check, ...]
    source: str
    statement: bytes
    earliest_issue: datetime = field(init=False)
    earliest_expiration: datetime = field(init=False)
    proof: InitVar[object] = None

    def __post_init__(self, proof: object) -> None:
        Proof.__post_init__(self, proof)
        ends = (window.not_after for window in self.windows if window.not_after is not None)
        object.__setattr__(self, "earliest_issue", min(window.not_before for window in self.windows))
        object.__setattr__(self, "earliest_expiration", min(ends))

    def __repr__(self) -> str:
        end = f"{self.earliest_expiration:%Y-%m-%d}"
        return f"<VerifiedCollateral {self.tcb_info.id}, FMSPC {self.tcb_info.fmspc.hex()}, until {end}>"

    def stale(self, now: datetime) -> tuple[Window, ...]:
        """The items that are expired or not yet valid at `now`; at exactly its end an item is still fresh."""
        checked_time(now, "now")
        return tuple(window for window in self.windows if not window.contains(now))

    @property
    def simulated(self) -> bool:
        """Whether all this stands on a simulated root."""
        return self.root.simulated


def verify_collateral(collateral: Collateral, *, roots: TrustRoots) -> VerifiedCollateral:
    """Verify every signature of the collateral, whatever the time.

    (1) the three issuer chains (PCK CRL, TCB info, QE identity) lead to trusted roots, and to one and the same;
    (2) that root issued and signed the root CA CRL;
    (3) neither the PCK CA nor a TCB signing certificate is on the root CA CRL;
    (4) the CA of the PCK CRL's issuer chain issued and signed the PCK CRL;
    (5) TCB Signing signed the exact bytes of the TCB info;
    (6) TCB Signing signed the exact bytes of the QE identity;
    (7) TCB info and QE identity have the content that they should.

    What is wrong is `CollateralInvalid`, which names the document and whose step is the id of the check that failed. A
    revoked PCK CA is a `RevokedError`: it speaks against the platforms that the CA certified.
    """
    return _Verification(collateral, roots).run()


class _Verification:
    """One run of the steps; every step that passes leaves a `Check`."""

    def __init__(self, collateral: Collateral, roots: TrustRoots) -> None:
        self.collateral = collateral
        self.roots = roots
        self.checks: list[Check] = []

    def run(self) -> VerifiedCollateral:
        pck_ca, tcb_signing, qe_signing = self._issuer_chains()
        root = pck_ca.root
        root_ca_crl = self._root_ca_crl(root)
        self._not_revoked(root_ca_crl, pck_ca, tcb_signing, qe_signing)
        pck_crl = self._pck_crl(pck_ca)
        with self.collateral.blamed("tcb_info"):
            signed_tcb_info = SignedTcbInfo.parse(self.collateral.tcb_info)
            self._signed(signed_tcb_info, tcb_signing, "collateral-tcb-info-signature", "TCB info")
            # (7)
            tcb_info = signed_tcb_info.tcb_info()
        with self.collateral.blamed("qe_identity"):
            signed_identity = SignedEnclaveIdentity.parse(self.collateral.qe_identity)
            self._signed(signed_identity, qe_signing, "collateral-qe-identity-signature", "QE identity")
            qe_identity = signed_identity.enclave_identity()
        windows = (
            Window("TCB info", tcb_info.issue_date, tcb_info.next_update),
            Window("QE identity", qe_identity.issue_date, qe_identity.next_update),
            Window("PCK CRL", pck_crl.this_update, pck_crl.next_update),
            Window("root CA CRL", root_ca_crl.this_update, root_ca_crl.next_update),
            *tcb_signing.windows,
            *qe_signing.windows,
            *pck_ca.windows,
        )
        return VerifiedCollateral(
            tcb_info=tcb_info,
            qe_identity=qe_identity,
            pck_crl=pck_crl,
            pck_ca=pck_ca.leaf,
            root_ca_crl=root_ca_crl,
            root=root,
            windows=tuple(dict.fromkeys(windows)),
            checks=tuple(self.checks),
            source=self.collateral.source,
            statement=digest_of(
                (
                    *(chain.statement for chain in (pck_ca, tcb_signing, qe_signing)),
                    *(crl.signed_bytes for crl in (root_ca_crl, pck_crl)),
                    *(document.body for document in (signed_tcb_info, signed_identity)),
                )
            ),
            proof=PROOF,
        )

    def _issuer_chains(self) -> tuple[VerifiedChain, VerifiedChain, VerifiedChain]:
        # (1)
        step = "collateral-issuer-chains"
        pck_ca = self._chain("pck_crl_issuer_chain", "ca", step)
        tcb_signing = self._chain("tcb_info_issuer_chain", "tcb-signing", step)
        # Intel sends one chain for both documents.
        received, qe_signing = self.collateral, tcb_signing
        if received.qe_identity_issuer_chain != received.tcb_info_issuer_chain:
            qe_signing = self._chain("qe_identity_issuer_chain", "tcb-signing", step)
        for part, chain in (("tcb_info_issuer_chain", tcb_signing), ("qe_identity_issuer_chain", qe_signing)):
            if chain.root.public_key != pck_ca.root.public_key:
                raise CollateralInvalid(
                    f"leads to another root than {received.place('pck_crl_issuer_chain')}",
                    document=received.place(part),
                    step=step,
                    expected=pck_ca.root.name,
                    found=chain.root.name,
                )
        self._passed("collateral-issuer-chains", "issuer chains to one trusted root", pck_ca.root.name)
        return pck_ca, tcb_signing, qe_signing

    def _chain(self, part: str, kind: ChainKind, step: str) -> VerifiedChain:
        with self.collateral.blamed(part):
            return verify_chain(getattr(self.collateral, part), roots=self.roots, kind=kind, step=step)

    def _root_ca_crl(self, root: TrustRoot) -> Crl:
        # (2)
        with self.collateral.blamed("root_ca_crl"):
            crl = Crl.parse(self.collateral.root_ca_crl, structure="root CA CRL")
            crl.verify_signature(root.certificate, step="collateral-root-ca-crl", what="the root CA CRL")
        self._passed("collateral-root-ca-crl", f"root CA CRL signed by {root.name}", f"number {crl.number}")
        return crl

    def _not_revoked(self, root_ca_crl: Crl, *chains: VerifiedChain) -> None:
        # The PCK CA speaks of the platform; a TCB signing certificate of the documents that it signed.
        parts = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
        # (3) A root in its own CRL changes nothing, as with Intel's library: a trust anchor is not part of the
        # path whose certificates are checked for revocation (RFC 5280 §6.1); who distrusts it takes it off the roots.
        for part, chain in zip(parts, chains, strict=True):
            certificate = chain.leaf
            if root_ca_crl.revoked(certificate.serial_number):
                signer = chain.kind == "tcb-signing"
                error = RevokedError(
                    f"the root CA revoked {common_name(certificate)}",
                    step="collateral-issuers-not-revoked",
                    expected=f"serial {certificate.serial_number:x} not on the root CA CRL",
                    found=f"on the root CA CRL, number {root_ca_crl.number}",
                    advice=_SIGNER_REVOKED if signer else None,
                )
                if signer:
                    raise CollateralInvalid.of(error, self.collateral.place(part)) from error
                raise error
        self._passed("collateral-issuers-not-revoked", "no issuer on the root CA CRL", "none")

    def _pck_crl(self, pck_ca: VerifiedChain) -> Crl:
        # (4)
        with self.collateral.blamed("pck_crl"):
            crl = Crl.parse(self.collateral.pck_crl, structure="PCK CRL")
            crl.verify_signature(pck_ca.leaf, step="collateral-pck-crl", what="the PCK CRL")
        self._passed("collateral-pck-crl", f"PCK CRL signed by {common_name(pck_ca.leaf)}", f"number {crl.number}")
        return crl

    def _signed(
        self, document: SignedTcbInfo | SignedEnclaveIdentity, signer: VerifiedChain, step: str, what: str
    ) -> None:
        # (5), (6)
        ecdsa.verify(signer.public_key, document.signature, document.body, step=step, what=f"the {what}")
        by = common_name(signer.leaf)
        self._passed(step, f"{what} signed by {by}", f"signed by {by}")

    def _passed(self, check: str, expected: str, found: str) -> None:
        self.checks.append(Check(check, ok=True, expected=expected, found=found))
