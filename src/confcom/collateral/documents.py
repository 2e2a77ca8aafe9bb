"""Documents: the single pieces of collateral, each under a key, and how they make up a `Collateral`.

A service gives documents one by one, a store keeps every version of each, a verifier wants the set for one platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from confcom.appraisal.collateral import Collateral
from confcom.errors import (
    ClockError,
    CollateralError,
    CollateralNotFound,
    ConfcomError,
    ConfigError,
    MismatchError,
    SignatureError,
    UntrustedRootError,
)
from confcom.formats import signed_json
from confcom.formats.signed_json import U32, Date, HexSignature
from confcom.formats.tcb_info import EnclaveIdentity, SignedEnclaveIdentity, SignedTcbInfo, TcbInfo
from confcom.pki.certificate import Crl
from confcom.pki.chain import TrustRoot, TrustRoots, VerifiedChain, verify_chain
from confcom.pki.proof import PROOF, Proof, sealed, verify_ecdsa
from confcom.protocols import pcs
from confcom.protocols.pcs import PckCaName, Tee, Update


class DocumentKind(StrEnum):
    """What Intel publishes."""

    TCB_INFO = "tcb-info"
    QE_IDENTITY = "qe-identity"
    QVE_IDENTITY = "qve-identity"
    QAE_IDENTITY = "qae-identity"
    PCK_CRL = "pck-crl"
    ROOT_CA_CRL = "root-ca-crl"
    TCB_EVALUATION_DATA_NUMBERS = "tcb-evaluation-data-numbers"


CRLS = frozenset({DocumentKind.PCK_CRL, DocumentKind.ROOT_CA_CRL})


_FIELDS: dict[DocumentKind, frozenset[str]] = {
    DocumentKind.TCB_INFO: frozenset({"tee", "fmspc", "update"}),
    DocumentKind.QE_IDENTITY: frozenset({"tee", "update"}),
    DocumentKind.QVE_IDENTITY: frozenset({"update"}),
    DocumentKind.QAE_IDENTITY: frozenset({"update"}),
    DocumentKind.PCK_CRL: frozenset({"ca"}),
    DocumentKind.ROOT_CA_CRL: frozenset(),
    DocumentKind.TCB_EVALUATION_DATA_NUMBERS: frozenset({"tee"}),
}
"""Which fields of a key a kind has."""
_ENCLAVES: dict[DocumentKind, pcs.Enclave] = {
    DocumentKind.QE_IDENTITY: "qe",
    DocumentKind.QVE_IDENTITY: "qve",
    DocumentKind.QAE_IDENTITY: "qae",
}


@dataclass(frozen=True, slots=True)
class DocumentKey:
    """Which document: a kind, and exactly the fields that the kind has; anything else is a `ConfigError`.

    `fmspc` is 6 bytes. `update` is the set: `standard` and `early` move to another number when Intel promotes one,
    a number does not.
    """

    kind: DocumentKind
    tee: Tee | None = None
    fmspc: bytes | None = None
    ca: PckCaName | None = None
    update: Update | None = None

    def __post_init__(self) -> None:
        for name in ("tee", "fmspc", "ca", "update"):
            wanted = name in _FIELDS[self.kind]
            if wanted != (getattr(self, name) is not None):
                raise ConfigError(f"the key of a {self.kind} {'needs' if wanted else 'has no'} {name}")
        if self.fmspc is not None and len(self.fmspc) != 6:
            raise ConfigError(f"an FMSPC is 6 bytes, found {len(self.fmspc)}")
        if isinstance(self.update, int) and not 0 <= self.update <= 0xFFFF_FFFF:
            raise ConfigError(f"{self.update} is no TCB evaluation data number")

    @classmethod
    def tcb_info(cls, tee: Tee, fmspc: bytes, update: Update = "standard") -> DocumentKey:
        """TCB info of one FMSPC."""
        return cls(DocumentKind.TCB_INFO, tee=tee, fmspc=fmspc, update=update)

    @classmethod
    def qe_identity(cls, tee: Tee, update: Update = "standard") -> DocumentKey:
        """Identity of the SGX QE or the TD QE."""
        return cls(DocumentKind.QE_IDENTITY, tee=tee, update=update)

    @classmethod
    def pck_crl(cls, ca: PckCaName) -> DocumentKey:
        """Revocation list of a PCK CA."""
        return cls(DocumentKind.PCK_CRL, ca=ca)

    @classmethod
    def root_ca_crl(cls) -> DocumentKey:
        """Revocation list of the root."""
        return cls(DocumentKind.ROOT_CA_CRL)

    def __str__(self) -> str:
        return pcs.describe(request_for(self))

    def as_dict(self) -> dict[str, Any]:
        """The fields for machines; None where the kind has none."""
        fmspc = None if self.fmspc is None else self.fmspc.hex()
        return {"kind": self.kind.value, "tee": self.tee, "fmspc": fmspc, "ca": self.ca, "update": self.update}


@dataclass(frozen=True, slots=True)
class Document:
    """A document as received: CRLs as DER, everything else byte for byte; `issuer_chain` is PEM.

    The root CA CRL has no chain (empty): the root itself issued it.
    """

    key: DocumentKey
    body: bytes
    issuer_chain: bytes = b""

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over the body's length as u64 big-endian, the body and the chain."""
        return hashlib.sha256(len(self.body).to_bytes(8, "big") + self.body + self.issuer_chain).digest()


def keys_for(fmspc: bytes, ca: PckCaName, tee: Tee, update: Update = "standard") -> tuple[DocumentKey, ...]:
    """The four documents that judge a quote of such a platform."""
    return (
        DocumentKey.tcb_info(tee, fmspc, update),
        DocumentKey.qe_identity(tee, update),
        DocumentKey.pck_crl(ca),
        DocumentKey.root_ca_crl(),
    )


def request_for(key: DocumentKey) -> pcs.DocumentRequest:
    """The request that asks a service for the document."""
    tee, update = key.tee or "sgx", key.update if key.update is not None else "standard"
    match key.kind:
        case DocumentKind.TCB_INFO:
            return pcs.TcbInfoRequest(tee, key.fmspc or b"", update)
        case DocumentKind.PCK_CRL:
            return pcs.PckCrlRequest(key.ca or "platform")
        case DocumentKind.ROOT_CA_CRL:
            return pcs.RootCaCrlRequest()
        case DocumentKind.TCB_EVALUATION_DATA_NUMBERS:
            return pcs.TcbEvaluationDataNumbersRequest(tee)
        case kind:
            return pcs.EnclaveIdentityRequest(tee, _ENCLAVES[kind], update)


def key_for(request: pcs.DocumentRequest) -> DocumentKey | None:
    """The document that a request asks for; None for a distribution point that is not known.

    Intel's are `…/IntelSGXRootCA.der` and `…/pckcrl?ca=…`; Azure's client library names older ones, in any case.
    """
    match request:
        case pcs.TcbInfoRequest(tee, fmspc, update):
            return DocumentKey.tcb_info(tee, fmspc, update)
        case pcs.EnclaveIdentityRequest(tee, enclave, update):
            kind = next(kind for kind, name in _ENCLAVES.items() if name == enclave)
            return DocumentKey(kind, tee=tee if "tee" in _FIELDS[kind] else None, update=update)
        case pcs.PckCrlRequest(ca):
            return DocumentKey.pck_crl(ca)
        case pcs.RootCaCrlRequest():
            return DocumentKey.root_ca_crl()
        case pcs.TcbEvaluationDataNumbersRequest(tee):
            return DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee=tee)
        case pcs.CrlRequest(uri):
            return _key_for_distribution_point(uri)


def document_from_answer(key: DocumentKey, answer: pcs.Answer) -> Document:
    """A document from what a service answered; a CRL in any encoding becomes its DER."""
    if key.kind in CRLS:
        return Document(key, bytes(Crl.parse(answer.body, structure=str(key))), answer.issuer_chain)
    return Document(key, answer.body, answer.issuer_chain)


def assemble(documents: Iterable[Document], *, source: str) -> Collateral:
    """The collateral of one platform from its four documents; what is missing is `CollateralNotFound`.

    The set is whichever the documents are of: asking one source for one set is the caller's part.
    """
    found = {document.key.kind: document for document in documents}
    needed = (DocumentKind.TCB_INFO, DocumentKind.QE_IDENTITY, DocumentKind.PCK_CRL, DocumentKind.ROOT_CA_CRL)
    missing = [kind.value for kind in needed if kind not in found]
    if missing:
        raise CollateralNotFound(f"{source} has no {' and no '.join(missing)}")
    tcb_info, qe_identity, pck_crl, root_ca_crl = (found[kind] for kind in needed)
    return Collateral(
        tcb_info_issuer_chain=tcb_info.issuer_chain,
        tcb_info=tcb_info.body,
        qe_identity_issuer_chain=qe_identity.issuer_chain,
        qe_identity=qe_identity.body,
        root_ca_crl=root_ca_crl.body,
        pck_crl=pck_crl.body,
        pck_crl_issuer_chain=pck_crl.issuer_chain,
        source=source,
    )


def take_apart(
    collateral: Collateral, *, fmspc: bytes, ca: PckCaName, tee: Tee, update: Update = "standard"
) -> tuple[Document, ...]:
    """The four documents of a collateral, under the keys that the caller knows it by."""
    tcb_info, qe_identity, pck_crl, root_ca_crl = keys_for(fmspc, ca, tee, update)
    return (
        Document(tcb_info, collateral.tcb_info, collateral.tcb_info_issuer_chain),
        Document(qe_identity, collateral.qe_identity, collateral.qe_identity_issuer_chain),
        document_from_answer(pck_crl, pcs.Answer(collateral.pck_crl, collateral.pck_crl_issuer_chain)),
        document_from_answer(root_ca_crl, pcs.Answer(collateral.root_ca_crl)),
    )


class CollateralSource(Protocol):
    """Gives the collateral of a platform, whole or document by document. Calls block.

    Failures: `CollateralNotFound` when the source has none for this platform, `CollateralUnavailable` when it does
    not answer, `FormatError` when its answer is malformed. Nothing that it returns is trusted before
    `verify_collateral`.
    """

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """Get the collateral for an FMSPC (6 bytes), the CA of its PCK certificate, and the kind of its quotes.

        `update` chooses the standard set, the early one, or the one of a TCB evaluation data number.
        """

    def fetch_document(self, key: DocumentKey) -> Document:
        """Get one document."""


_LISTS: dict[str, DocumentKey] = {
    "intelsgxrootca": DocumentKey.root_ca_crl(),
    "rootcacrl": DocumentKey.root_ca_crl(),
    "intelsgxpckprocessor": DocumentKey.pck_crl("processor"),
    "intelsgxpckplatform": DocumentKey.pck_crl("platform"),
}


def _key_for_distribution_point(uri: str) -> DocumentKey | None:
    try:
        parts = urlsplit(uri.lower())
    except ValueError:
        return None
    name = parts.path.rpartition("/")[2].removesuffix(".crl").removesuffix(".der")
    if name != "pckcrl":
        return _LISTS.get(name)
    match dict(parse_qsl(parts.query)).get("ca"):
        case ("processor" | "platform") as ca:
            return DocumentKey.pck_crl(ca)
        case _:
            return None


def missing_document(key: DocumentKey, source: str) -> CollateralError:
    """The error of a source that has no such document."""
    return CollateralNotFound(f"{source} has no {key}")


# Reading and verifying a document
#
# `read_document` and `check_answer` trust nothing and prove nothing; `verify_document` proves the signature of one
# document, which is what a store needs before it keeps it. That the documents of a platform belong together, and that
# no issuer is revoked, is `verify_collateral`'s to say when they are used.


STEP = "document"
_IDENTITY_IDS = {
    (DocumentKind.QE_IDENTITY, "sgx"): "QE",
    (DocumentKind.QE_IDENTITY, "tdx"): "TD_QE",
    (DocumentKind.QVE_IDENTITY, None): "QVE",
    (DocumentKind.QAE_IDENTITY, None): "QAE",
}


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """When a document was issued, when the next is due, and its number: that of the set, or a CRL's own."""

    issue_date: datetime
    next_update: datetime
    number: int


@sealed
@dataclass(frozen=True, slots=True)
class VerifiedDocument(Proof):
    """A document with a good signature; only `verify_document` makes one. `expires` also heeds its certificates."""

    made_by: ClassVar[str] = "verify_document"

    document: Document
    facts: DocumentFacts
    root: TrustRoot
    expires: datetime
    proof: InitVar[object] = None


def read_document(document: Document) -> DocumentFacts:
    """Dates and number as the document states them; malformed bytes are a `FormatError`."""
    return _facts(_content(document))


def _facts(content: _Content) -> DocumentFacts:
    if isinstance(content, Crl):
        return DocumentFacts(content.this_update, content.next_update, content.number)
    return DocumentFacts(content.issue_date, content.next_update, content.tcb_evaluation_data_number)


def check_answer(document: Document, *, source: str) -> None:
    """Hold an answer to its key: another FMSPC, another enclave or another set than asked is `CollateralNotFound`."""
    _require_key(document.key, _content(document), source)


def _require_key(key: DocumentKey, content: _Content, source: str) -> None:
    if isinstance(content, Crl):
        return
    wanted: dict[str, object] = {"id": (key.tee or "").upper()}
    found: dict[str, object] = {"id": content.id}
    if isinstance(content, TcbInfo):
        wanted["FMSPC"], found["FMSPC"] = (key.fmspc or b"").hex(), content.fmspc.hex()
    elif isinstance(content, EnclaveIdentity):
        wanted, found = {"id": _IDENTITY_IDS[key.kind, key.tee]}, {"id": content.id.value}
    if isinstance(key.update, int):
        wanted["set"], found["set"] = key.update, content.tcb_evaluation_data_number
    for name, value in wanted.items():
        if found[name] != value:
            raise CollateralNotFound(
                f"{source} was asked for the {key} and answered with one that has {name} {found[name]}",
                advice="A caching service may not know sets by number: ask Intel's service, or a store."
                if name == "set"
                else "Check that the URL is the one of a collateral service.",
            )


def verify_document(document: Document, *, roots: TrustRoots) -> VerifiedDocument:
    """Verify one document, whatever the time.

    (1) it is the document of its key;
    (2) its issuer chain leads to a trusted root;
    (3) the issuer signed exactly these bytes.

    Malformed bytes are a `FormatError`, the others subclasses of `VerificationError`.
    """
    # (1)
    content = _content(document)
    facts = _facts(content)
    try:
        _require_key(document.key, content, "this file or service")
    except CollateralNotFound as error:
        raise MismatchError(error.message, step=STEP, advice=error.advice()) from error
    if isinstance(content, Crl):
        return _verify_crl(document, content, facts, roots)
    # (2)
    chain = verify_chain(document.issuer_chain, roots=roots, kind="tcb-signing", step=STEP)
    # (3)
    signed = _SIGNED[document.key.kind](document.body)
    digest = hashlib.sha256(signed.body).digest()
    verify_ecdsa(chain.public_key, signed.signature, digest, step=STEP, what=f"the {document.key}")
    return VerifiedDocument(document, facts, chain.root, _expires(facts, chain), proof=PROOF)


def _verify_crl(document: Document, crl: Crl, facts: DocumentFacts, roots: TrustRoots) -> VerifiedDocument:
    what = f"the {document.key}"
    if document.key.kind is DocumentKind.ROOT_CA_CRL:
        root = _issuing_root(crl, roots, what)
        return VerifiedDocument(document, facts, root, facts.next_update, proof=PROOF)
    chain = verify_chain(document.issuer_chain, roots=roots, kind="ca", step=STEP)
    if chain.ca != document.key.ca:
        raise MismatchError(f"{what} is one of the {chain.ca} CA", step=STEP)
    crl.verify_signature(chain.leaf, step=STEP, what=what)
    return VerifiedDocument(document, facts, chain.root, _expires(facts, chain), proof=PROOF)


def _issuing_root(crl: Crl, roots: TrustRoots, what: str) -> TrustRoot:
    failure: ConfcomError | None = None
    for root in roots.roots:
        try:
            crl.verify_signature(root.certificate, step=STEP, what=what)
        except SignatureError as error:
            failure = error
        except MismatchError as error:
            failure = failure or error
        else:
            return root
    if isinstance(failure, SignatureError):
        raise failure
    raise UntrustedRootError(
        f"{what} was issued by a root that is not trusted",
        step=STEP,
        expected=" or ".join(root.name for root in roots.roots),
        found=crl.issuer_text,
    )


def _expires(facts: DocumentFacts, chain: VerifiedChain) -> datetime:
    ends = (window.not_after for window in chain.windows if window.not_after is not None)
    return min(facts.next_update, *ends)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The head of a list of TCB evaluation data numbers; its number is the highest that it lists."""

    id: str
    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int


@dataclass(frozen=True, slots=True)
class _SignedNumbers:
    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> _SignedNumbers:
        return cls(*signed_json.split(data, _NumbersDocument, _NUMBERS, "tcbEvaluationDataNumbers"))

    def listed(self) -> _NumbersJson:
        return signed_json.decode_content(self.body, {1: _NumbersJson}, _NUMBERS)

    def numbers(self) -> _Numbers:
        found = self.listed()
        return _Numbers(
            found.id,
            signed_json.parse_date(found.issue_date, _NUMBERS, "issueDate"),
            signed_json.parse_date(found.next_update, _NUMBERS, "nextUpdate"),
            max((entry.number for entry in found.numbers), default=0),
        )


_NUMBERS = "TcbEvaluationDataNumbers"


def evaluation_data_numbers(document: Document) -> tuple[EvaluationDataNumber, ...]:
    """What a list of TCB evaluation data numbers holds, newest first. Its signature is not verified: it judges nothing.

    Raises:
        FormatError: another document, or a malformed one.
    """
    found = _SignedNumbers.parse(document.body).listed().numbers
    return tuple(sorted(found, key=lambda entry: entry.number, reverse=True))


class _NumbersDocument(msgspec.Struct):
    signature: HexSignature
    body: msgspec.Raw = msgspec.field(name="tcbEvaluationDataNumbers")


class EvaluationDataNumber(msgspec.Struct, frozen=True):
    """A set of TCB levels that Intel offers, and when the levels of the TCB recovery behind it were published."""

    number: U32 = msgspec.field(name="tcbEvaluationDataNumber")
    recovery_event: Date = msgspec.field(name="tcbRecoveryEventDate", default="")


class _NumbersJson(msgspec.Struct, rename="camel"):
    id: str
    version: int
    issue_date: Date
    next_update: Date
    numbers: list[EvaluationDataNumber] = msgspec.field(name="tcbEvalNumbers")


_SIGNED: dict[DocumentKind, Callable[[bytes], Any]] = {
    DocumentKind.TCB_INFO: SignedTcbInfo.parse,
    DocumentKind.QE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.QVE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.QAE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.TCB_EVALUATION_DATA_NUMBERS: _SignedNumbers.parse,
}


_Content = Crl | TcbInfo | EnclaveIdentity | _Numbers


def _content(document: Document) -> _Content:
    match document.key.kind:
        case DocumentKind.PCK_CRL | DocumentKind.ROOT_CA_CRL:
            return Crl.parse(document.body, structure=str(document.key))
        case DocumentKind.TCB_INFO:
            return SignedTcbInfo.parse(document.body).tcb_info()
        case DocumentKind.TCB_EVALUATION_DATA_NUMBERS:
            return _SignedNumbers.parse(document.body).numbers()
        case _:
            return SignedEnclaveIdentity.parse(document.body).enclave_identity()


signed_json.prepare(_NumbersDocument, _NumbersJson)


# This machine's clock, compared with the dates of documents
#
# Documents are issued in the past and used within weeks, so a clock far from them is more likely wrong than they are.


TOLERANCE = timedelta(hours=1)
"""A clock may be behind the issue of a document by this; Intel issues hours before it serves."""

ABANDONED = timedelta(days=730)
"""When everything expired longer ago than this, the clock may be ahead: a store in use is filled every month."""


@dataclass(frozen=True, slots=True)
class Dates:
    """The latest issue, and the latest expiry, of some documents."""

    issued: datetime
    expires: datetime

    @classmethod
    def of(cls, documents: Iterable[tuple[datetime, datetime]]) -> Dates | None:
        """The dates of documents by issue and expiry; None where there are none."""
        pairs = list(documents)
        return cls(max(issued for issued, _ in pairs), max(expires for _, expires in pairs)) if pairs else None

    def clock_behind(self, now: datetime) -> str:
        """Why the clock is behind; empty where it need not be."""
        if self.issued - now <= TOLERANCE:
            return ""
        return (
            f"this machine's clock says {rfc3339(now)}, but collateral was issued at {rfc3339(self.issued)}: "
            f"the clock is behind"
        )

    def clock_problem(self, now: datetime) -> str:
        """Why the clock is behind, or probably ahead; empty where neither is."""
        if now - self.expires <= ABANDONED:
            return self.clock_behind(now)
        return (
            f"this machine's clock says {rfc3339(now)}, and all collateral expired by {rfc3339(self.expires)}: the "
            f"clock is ahead, or nothing was fetched for years"
        )

    def require_clock(self, now: datetime) -> None:
        """Refuse to take documents in by a clock that is behind their issue: `ClockError`."""
        problem = self.clock_behind(now)
        if problem:
            raise ClockError(problem)


def rfc3339(time: datetime) -> str:
    """The time in UTC, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
