"""SimulatedPcs: the simulated authority as a collateral source, in the place of Intel's PCS or a cache."""

from __future__ import annotations

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import Document, DocumentKey, DocumentKind, missing_document, take_apart
from confcom.collateral.interface import PckCaName, Tee, Update
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.simulator.authority import SOURCE, SimulatedAuthority
from confcom.simulator.machine import FMSPC, PckCa


class SimulatedPcs:
    """A `CollateralSource`. Set `reachable` to False to play an outage.

    There is one set at a time: standard and early are the same, and so is its number.
    """

    def __init__(self, authority: SimulatedAuthority) -> None:
        self.authority = authority
        self.reachable = True

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The authority's collateral as it stands now; there is none for TDX."""
        if not self.reachable:
            raise CollateralUnavailable("the simulated collateral service does not answer")
        if tee != "sgx":
            raise CollateralNotFound("the simulated authority knows SGX machines only")
        number = self.authority.tcb_info(fmspc).tcb_evaluation_data_number
        if isinstance(update, int) and update != number:
            raise CollateralNotFound(f"the simulated authority has set {number} alone, not {update}")
        return self.authority.collateral(fmspc, PckCa(ca))

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document as it stands now."""
        known = (DocumentKind.TCB_INFO, DocumentKind.QE_IDENTITY, DocumentKind.PCK_CRL, DocumentKind.ROOT_CA_CRL)
        if key.kind not in known:
            raise missing_document(key, SOURCE)
        fmspc, ca, tee = key.fmspc or FMSPC, key.ca or "platform", key.tee or "sgx"
        update: Update = "standard" if key.update is None else key.update
        collateral = self.fetch(fmspc, ca, tee, update=update)
        documents = take_apart(collateral, fmspc=fmspc, ca=ca, tee=tee, update=update)
        return next(document for document in documents if document.key == key)
