"""SimulatedPcs: the simulated authority as a collateral source, in the place of Intel's PCS or a cache."""

from __future__ import annotations

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import Document, DocumentKey, DocumentKind, missing_document, take_apart
from confcom.collateral.interface import PckCaName, Tee, Update
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.simulator.authority import SOURCE, SimulatedAuthority
from confcom.simulator.documents import SimulatedEvaluationDataNumbers, SimulatedQeIdentity
from confcom.simulator.machine import FMSPC, PckCa


class SimulatedPcs:
    """A `CollateralSource`. Set `reachable` to False to play an outage.

    There is one set at a time: standard and early are the same, and so is its number.
    """

    def __init__(self, authority: SimulatedAuthority) -> None:
        self.authority = authority
        self.reachable = True

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The authority's collateral as it stands now."""
        self._require_set(update, self.authority.tcb_info(fmspc, tee).tcb_evaluation_data_number)
        return self.authority.collateral(fmspc, PckCa(ca), tee)

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document as it stands now; there is no QAE."""
        update: Update = "standard" if key.update is None else key.update
        match key.kind:
            case DocumentKind.TCB_EVALUATION_DATA_NUMBERS:
                self._require_set(update)
                return self._signed(key, self.authority.evaluation_data_numbers(key.tee or "sgx"))
            case DocumentKind.QVE_IDENTITY:
                self._require_set(update, self.authority.qve_identity.tcb_evaluation_data_number)
                return self._signed(key, self.authority.qve_identity)
            case DocumentKind.QAE_IDENTITY:
                raise missing_document(key, SOURCE)
        fmspc, ca, tee = key.fmspc or FMSPC, key.ca or "platform", key.tee or "sgx"
        collateral = self.fetch(fmspc, ca, tee, update=update)
        documents = take_apart(collateral, fmspc=fmspc, ca=ca, tee=tee, update=update)
        return next(document for document in documents if document.key == key)

    def _signed(self, key: DocumentKey, document: SimulatedQeIdentity | SimulatedEvaluationDataNumbers) -> Document:
        return Document(key, self.authority.signed(document), self.authority.signing_chain())

    def _require_set(self, update: Update, number: int = 0) -> None:
        if not self.reachable:
            raise CollateralUnavailable("the simulated collateral service does not answer")
        if isinstance(update, int) and update != number:
            raise CollateralNotFound(f"the simulated authority has set {number} alone, not {update}")
