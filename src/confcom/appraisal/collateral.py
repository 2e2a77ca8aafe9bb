"""Collateral: what Intel says about a platform, as received and as verified (dcap.md §3, §4.2, §4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import ClassVar

import msgspec

from confcom.appraisal.findings import Check, passed
from confcom.errors import CollateralInvalid, FormatError, RevokedError, VerificationError
from confcom.formats.arguments import checked_bytes, checked_time, checked_type
from confcom.formats.tcb_info import EnclaveIdentity, SignedEnclaveIdentity, SignedTcbInfo, TcbInfo
from confcom.pki.certificate import Crl, PemChain, load_chain
from confcom.pki.chain import ChainKind, TrustRoot, TrustRoots, VerifiedChain, Window, verify_chain
from confcom.pki.der import Certificate
from confcom.pki.proof import PROOF, Known, Memory, Proof, sealed, verify_ecdsa

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
SIGNATURES = 64
"""Signatures by CAs and TCB signing keys that one verifier remembers: six per collateral."""
PCK_CHAIN_BESIDE = "the PCK chain beside the quote"
"""The name of a chain that was given with the quote, and not in a folder of collateral."""
_CHAINS: dict[str, tuple[ChainKind, str]] = {
    "pck_crl_issuer_chain": ("ca", "PCK CA chain"),
    "tcb_info_issuer_chain": ("tcb-signing", "TCB signing chain"),
    "qe_identity_issuer_chain": ("tcb-signing", "TCB signing chain"),
}


class CollateralJson(msgspec.Struct, omit_defaults=True):
    """A set of collateral in one document, dcap-qvl's `QuoteCollateralV3`: CRLs and signatures in hexadecimal."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None


@dataclass(slots=True, eq=False)
class CollateralContent:
    """The parts of collateral, read. How they were wrapped does not count, nor where they came from.

    Digests, 32 bytes each: `tcb_info_digest` and `qe_identity_digest` of what is signed in these, `statement` of all
    that is signed, `exact` of that and the signatures, `wrapping` of the parts as they came.
    """

    chains: Mapping[str, PemChain]
    root_ca_crl: Crl
    pck_crl: Crl
    tcb_info: SignedTcbInfo
    qe_identity: SignedEnclaveIdentity
    wrapping: bytes
    tcb_info_digest: bytes = field(init=False)
    qe_identity_digest: bytes = field(init=False)
    statement: bytes = field(init=False)
    exact: bytes = field(init=False)
    documents: tuple[TcbInfo, EnclaveIdentity] | None = field(default=None, init=False)
    """What TCB info and QE identity say; read when their signatures are good."""

    def __post_init__(self) -> None:
        chains, crls = self.chains.values(), (self.root_ca_crl, self.pck_crl)
        self.tcb_info_digest = sha256(self.tcb_info.body).digest()
        self.qe_identity_digest = sha256(self.qe_identity.body).digest()
        signed = [*[chain.statement for chain in chains], *[crl.signed_digest for crl in crls]]
        signed += [self.tcb_info_digest, self.qe_identity_digest]
        self.statement = sha256(b"".join(signed)).digest()
        exact = [self.statement, *[chain.exact for chain in chains], *[sha256(crl.der).digest() for crl in crls]]
        self.exact = sha256(b"".join([*exact, self.tcb_info.signature, self.qe_identity.signature])).digest()


# Reading is no decision on trust. Only collateral that verified is kept: strangers cannot fill it.
_CONTENTS: Memory[CollateralContent] = Memory(64)


class _Read:
    """Room for the content beside the fields."""

    __slots__ = ("_content",)
    _content: CollateralContent


@dataclass(frozen=True, slots=True, repr=False)
class Collateral(_Read):
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

    def __repr__(self) -> str:
        return f"<Collateral from {self.source}>"

    def content(self) -> CollateralContent:
        """The parts, read but not verified. Malformed ones are `CollateralInvalid`."""
        # Kept, because a verifier asks for every quote that it judges; the parts never change.
        if not hasattr(self, "_content"):
            object.__setattr__(self, "_content", self._read_content())
        return self._content

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what is verified; malformed parts are `CollateralInvalid`."""
        return self.content().exact

    def _read_content(self) -> CollateralContent:
        received = [getattr(self, part) for part in _TITLES]
        sizes = [len(part).to_bytes(8, "big") for part in received]
        wrapping = sha256(b"".join(sizes + received)).digest()
        known = _CONTENTS.get_wrapped(wrapping)
        if known is not None:
            return known
        chains, crls, part = {}, {}, ""
        try:
            for part, (_, structure) in _CHAINS.items():
                chains[part] = load_chain(getattr(self, part), structure=structure)
            for part in ("root_ca_crl", "pck_crl"):
                crls[part] = Crl.parse(getattr(self, part), structure=_TITLES[part])
            part = "tcb_info"
            info = SignedTcbInfo.parse(self.tcb_info)
            part = "qe_identity"
            identity = SignedEnclaveIdentity.parse(self.qe_identity)
        except FormatError as error:
            raise CollateralInvalid.of(error, self.place(part)) from error
        return CollateralContent(chains, crls["root_ca_crl"], crls["pck_crl"], info, identity, wrapping)


@sealed
@dataclass(frozen=True, slots=True, repr=False)
class VerifiedCollateral(Proof):
    """Collateral with good signatures throughout; only `verify_collateral` makes one. Ask `stale` about the time.

    `pck_ca_chain` is that of the CA that issued `pck_crl`; a PCK certificate can be looked up there only if the same CA
    issued it. All of it is valid from `valid_from` to `valid_until`, both included.
    """

    made_by: ClassVar[str] = "verify_collateral"

    tcb_info: TcbInfo
    qe_identity: EnclaveIdentity
    pck_crl: Crl
    root_ca_crl: Crl
    pck_ca_chain: VerifiedChain
    tcb_signing: VerifiedChain
    qe_signing: VerifiedChain
    source: str
    statement: bytes
    valid_from: datetime = field(init=False)
    valid_until: datetime = field(init=False)
    proof: InitVar[object] = None

    def __post_init__(self, proof: object) -> None:
        Proof.__post_init__(self, proof)
        info, identity, pck, root = self.tcb_info, self.qe_identity, self.pck_crl, self.root_ca_crl
        ca, signing, other = self.pck_ca_chain, self.tcb_signing, self.qe_signing
        begin = max(info.issue_date, identity.issue_date, pck.this_update, root.this_update)
        end = min(info.next_update, identity.next_update, pck.next_update, root.next_update)
        object.__setattr__(self, "valid_from", max(begin, ca.valid_from, signing.valid_from, other.valid_from))
        object.__setattr__(self, "valid_until", min(end, ca.valid_until, signing.valid_until, other.valid_until))

    @property
    def earliest_issue(self) -> datetime:
        """Since when the oldest item is valid."""
        return min(window.not_before for window in self.windows)

    def __repr__(self) -> str:
        end = f"{self.earliest_expiration:%Y-%m-%d}"
        return f"<VerifiedCollateral {self.tcb_info.id}, FMSPC {self.tcb_info.fmspc.hex()}, until {end}>"

    @property
    def pck_ca(self) -> Certificate:
        """The CA that issued `pck_crl`."""
        return self.pck_ca_chain.leaf

    @property
    def root(self) -> TrustRoot:
        """The root that all of it stands on."""
        return self.pck_ca_chain.root

    @property
    def windows(self) -> tuple[Window, ...]:
        """The validity of each item, each once."""
        windows = (
            Window("TCB info", self.tcb_info.issue_date, self.tcb_info.next_update),
            Window("QE identity", self.qe_identity.issue_date, self.qe_identity.next_update),
            Window("PCK CRL", self.pck_crl.this_update, self.pck_crl.next_update),
            Window("root CA CRL", self.root_ca_crl.this_update, self.root_ca_crl.next_update),
            *self.tcb_signing.windows,
            *self.qe_signing.windows,
            *self.pck_ca_chain.windows,
        )
        return tuple(dict.fromkeys(windows))

    @property
    def checks(self) -> tuple[Check, ...]:
        """The steps of `verify_collateral`, all of which passed."""
        root, pck_ca = self.root.name, self.pck_ca.common_name
        numbers = f"number {self.root_ca_crl.number}", f"number {self.pck_crl.number}"
        info, identity = (chain.leaf.common_name for chain in (self.tcb_signing, self.qe_signing))
        return (
            passed("collateral-issuer-chains", "issuer chains to one trusted root", root),
            passed("collateral-root-ca-crl", f"root CA CRL signed by {root}", numbers[0]),
            passed("collateral-issuers-not-revoked", "no issuer on the root CA CRL", "none"),
            passed("collateral-pck-crl", f"PCK CRL signed by {pck_ca}", numbers[1]),
            passed("collateral-tcb-info-signature", f"TCB info signed by {info}", f"signed by {info}"),
            passed("collateral-qe-identity-signature", f"QE identity signed by {identity}", f"signed by {identity}"),
        )

    @property
    def earliest_expiration(self) -> datetime:
        """When the first item expires."""
        return self.valid_until

    def stale(self, now: datetime) -> tuple[Window, ...]:
        """The items that are expired or not yet valid at `now`; at exactly its end an item is still fresh."""
        checked_time(now, "now")
        return stale_windows(self.windows, now)

    @property
    def simulated(self) -> bool:
        """Whether all this stands on a simulated root."""
        return self.root.simulated


def stale_windows(windows: Iterable[Window], now: datetime) -> tuple[Window, ...]:
    """Those that do not contain `now`."""
    return tuple(window for window in windows if not window.contains(now))


def verify_collateral(collateral: Collateral, *, roots: TrustRoots, known: Known | None = None) -> VerifiedCollateral:
    """Verify every signature of the collateral, whatever the time.

    (1) the three issuer chains (PCK CRL, TCB info, QE identity) lead to trusted roots, and to one and the same;
    (2) that root issued and signed the root CA CRL;
    (3) neither the PCK CA nor a TCB signing certificate is on the root CA CRL;
    (4) the CA of the PCK CRL's issuer chain issued and signed the PCK CRL;
    (5) TCB Signing signed the exact bytes of the TCB info;
    (6) TCB Signing signed the exact bytes of the QE identity;
    (7) TCB info and QE identity have the content that they should.

    What is wrong is `CollateralInvalid`, which names the document, with the id of the check that failed as its step. A
    revoked PCK CA is a `RevokedError`: it speaks against the platforms that the CA certified. Signatures that are in
    `known` are not computed again.
    """
    content, part = collateral.content(), ""
    root_ca_crl, pck_crl = content.root_ca_crl, content.pck_crl
    chains: dict[str, VerifiedChain] = {}
    known = Memory(SIGNATURES) if known is None else known
    try:
        # (1)
        for part, (kind, _) in _CHAINS.items():
            same = content.chains["tcb_info_issuer_chain"].exact == content.chains[part].exact
            if part == "qe_identity_issuer_chain" and same:  # Intel sends one chain for both documents
                chains[part] = chains["tcb_info_issuer_chain"]
                continue
            step = "collateral-issuer-chains"
            chains[part] = verify_chain(content.chains[part], roots=roots, kind=kind, step=step, known=known)
        pck_ca, tcb_signing, qe_signing = chains.values()
        _check_one_root(collateral, chains)
        # (2)
        part, step, what = "root_ca_crl", "collateral-root-ca-crl", "the root CA CRL"
        root_ca_crl.verify_signature(pck_ca.root.certificate, step=step, what=what, known=known)
        # (3)
        for part in chains:
            _check_not_revoked(root_ca_crl, chains[part])
        # (4)
        part, step, what = "pck_crl", "collateral-pck-crl", "the PCK CRL"
        pck_crl.verify_signature(pck_ca.leaf, step=step, what=what, known=known)
        # (5)
        part, step, what = "tcb_info", "collateral-tcb-info-signature", "the TCB info"
        signature, digest = content.tcb_info.signature, content.tcb_info_digest
        verify_ecdsa(tcb_signing.leaf, signature, digest, step=step, what=what, known=known)
        # (6)
        part, step, what = "qe_identity", "collateral-qe-identity-signature", "the QE identity"
        signature, digest = content.qe_identity.signature, content.qe_identity_digest
        verify_ecdsa(qe_signing.leaf, signature, digest, step=step, what=what, known=known)
        # (7)
        if content.documents is None:
            part = "tcb_info"
            tcb_info = content.tcb_info.tcb_info()
            part = "qe_identity"
            qe_identity = content.qe_identity.enclave_identity()
            content.documents = tcb_info, qe_identity
            _CONTENTS.add(content.statement, content, exact=content.exact, wrapping=content.wrapping)
    except (FormatError, VerificationError) as error:
        if part == "pck_crl_issuer_chain" and isinstance(error, RevokedError):
            raise  # it speaks against the platforms that the PCK CA certified
        raise CollateralInvalid.of(error, collateral.place(part)) from error
    tcb_info, qe_identity = content.documents
    return VerifiedCollateral(
        tcb_info=tcb_info,
        qe_identity=qe_identity,
        pck_crl=pck_crl,
        root_ca_crl=root_ca_crl,
        pck_ca_chain=pck_ca,
        tcb_signing=tcb_signing,
        qe_signing=qe_signing,
        source=collateral.source,
        statement=content.statement,
        proof=PROOF,
    )


def _check_one_root(collateral: Collateral, chains: Mapping[str, VerifiedChain]) -> None:
    (first, expected), *others = [(part, chain.root) for part, chain in chains.items()]
    for part, root in others:
        if root.public_key != expected.public_key:
            raise CollateralInvalid(
                f"leads to another root than {collateral.place(first)}",
                document=collateral.place(part),
                step="collateral-issuer-chains",
                expected=expected.name,
                found=root.name,
            )


def _check_not_revoked(root_ca_crl: Crl, chain: VerifiedChain) -> None:
    """Step 3. The PCK CA speaks of the platform; a TCB signing certificate of the documents that it signed.

    A root in its own CRL changes nothing, as with Intel's library: a trust anchor is not part of the path
    that is checked for revocation (RFC 5280 §6.1). To distrust a root, take it off the roots.
    """
    certificate = chain.leaf
    if root_ca_crl.revoked(certificate.serial_number):
        raise RevokedError(
            f"the root CA revoked {certificate.common_name}",
            step="collateral-issuers-not-revoked",
            expected=f"serial {certificate.serial_number:x} not on the root CA CRL",
            found=f"on the root CA CRL, number {root_ca_crl.number}",
            advice=_SIGNER_REVOKED if chain.kind == "tcb-signing" else None,
        )
