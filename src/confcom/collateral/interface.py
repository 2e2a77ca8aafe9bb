"""Where collateral comes from: the port that every source fills."""

from __future__ import annotations

from typing import Protocol

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import Document, DocumentKey
from confcom.protocols.pcs import PckCaName, Tee, Update


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
