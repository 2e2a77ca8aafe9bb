"""What a document says about itself, whether it is the one that was asked for, and whether Intel signed it.

`read_document` and `check_answer` trust nothing and prove nothing; `verify_document` proves the signature of one
document, which is what a store needs before it keeps it. That the documents of a platform belong together, and that
no issuer is revoked, is `verify_collateral`'s to say when they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from confcom.collateral.documents import Document, DocumentKind
from confcom.errors import CollateralNotFound, ConfcomError, MismatchError, SignatureError, UntrustedRootError
from confcom.formats import signed_json
from confcom.formats.enclave_identity import EnclaveIdentity, SignedEnclaveIdentity
from confcom.formats.signed_json import U32, Date, HexSignature
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo
from confcom.pki import ecdsa
from confcom.pki.chain import VerifiedChain, verify_chain
from confcom.pki.crl import Crl
from confcom.pki.proof import PROOF, Proof
from confcom.pki.roots import TrustRoot, TrustRoots

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
    content = _content(document)
    if isinstance(content, Crl):
        return DocumentFacts(content.this_update, content.next_update, content.number)
    return DocumentFacts(content.issue_date, content.next_update, content.tcb_evaluation_data_number)


def check_answer(document: Document, *, source: str) -> DocumentFacts:
    """Hold an answer to its key: another FMSPC, another enclave or another set than asked is `CollateralNotFound`."""
    key, content = document.key, _content(document)
    if isinstance(content, Crl):
        return DocumentFacts(content.this_update, content.next_update, content.number)
    wanted: dict[str, object] = {}
    found: dict[str, object] = {}
    if isinstance(content, TcbInfo):
        wanted = {"id": (key.tee or "").upper(), "FMSPC": (key.fmspc or b"").hex()}
        found = {"id": content.id, "FMSPC": content.fmspc.hex()}
    elif isinstance(content, EnclaveIdentity):
        wanted, found = {"id": _IDENTITY_IDS[key.kind, key.tee]}, {"id": content.id.value}
    if isinstance(key.update, int):
        wanted["set"], found["set"] = key.update, content.tcb_evaluation_data_number
    for name, value in wanted.items():
        if found[name] != value:
            raise CollateralNotFound(
                f"{source} was asked for the {key} and answered with one whose {name} is {found[name]}",
                advice="A caching service may not know sets by number: ask Intel's service, or a store."
                if name == "set"
                else "Check that the URL is the one of a collateral service.",
            )
    return DocumentFacts(content.issue_date, content.next_update, content.tcb_evaluation_data_number)


def verify_document(document: Document, *, roots: TrustRoots) -> VerifiedDocument:
    """Verify one document, whatever the time.

    (1) it is what its key says;
    (2) its issuer chain leads to a trusted root;
    (3) the issuer signed exactly these bytes.

    Malformed bytes are a `FormatError`, the others subclasses of `VerificationError`.
    """
    # (1)
    try:
        facts = check_answer(document, source="this file or service")
    except CollateralNotFound as error:
        raise MismatchError(error.message, step=STEP, advice=error.advice()) from error
    content = _content(document)
    if isinstance(content, Crl):
        return _verify_crl(document, content, facts, roots)
    # (2)
    chain = verify_chain(document.issuer_chain, roots=roots, kind="tcb-signing", step=STEP)
    # (3)
    signed = _SIGNED[document.key.kind](document.body)
    ecdsa.verify(chain.public_key, signed.signature, signed.body, step=STEP, what=f"the {document.key}")
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
        found=crl.issuer.rfc4514_string(),
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
        found = signed_json.decode(data, _NumbersDocument, _NUMBERS)
        body = signed_json.exact_object(found.body, data, _NUMBERS, "tcbEvaluationDataNumbers")
        return cls(body, bytes.fromhex(found.signature))

    def numbers(self) -> _Numbers:
        found = signed_json.decode_content(self.body, {1: _NumbersJson}, _NUMBERS)
        return _Numbers(
            found.id,
            signed_json.parse_date(found.issue_date, _NUMBERS, "issueDate"),
            signed_json.parse_date(found.next_update, _NUMBERS, "nextUpdate"),
            max((entry.number for entry in found.numbers), default=0),
        )


_NUMBERS = "TcbEvaluationDataNumbers"


class _NumbersDocument(msgspec.Struct):
    signature: HexSignature
    body: msgspec.Raw = msgspec.field(name="tcbEvaluationDataNumbers")


class _Number(msgspec.Struct):
    number: U32 = msgspec.field(name="tcbEvaluationDataNumber")


class _NumbersJson(msgspec.Struct, rename="camel"):
    id: str
    issue_date: Date
    next_update: Date
    numbers: list[_Number] = msgspec.field(name="tcbEvalNumbers")


_SIGNED: dict[DocumentKind, Callable[[bytes], Any]] = {
    DocumentKind.TCB_INFO: SignedTcbInfo.parse,
    DocumentKind.QE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.QVE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.QAE_IDENTITY: SignedEnclaveIdentity.parse,
    DocumentKind.TCB_EVALUATION_DATA_NUMBERS: _SignedNumbers.parse,
}


def _content(document: Document) -> Crl | TcbInfo | EnclaveIdentity | _Numbers:
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
