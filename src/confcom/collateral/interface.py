"""Where collateral comes from: the port that every source fills."""

from __future__ import annotations

from typing import Literal, Protocol

from confcom.appraisal.collateral import Collateral


class CollateralSource(Protocol):
    """Gives the collateral of a platform. Calls block.

    Failures: `CollateralNotFound` when the source has none for this platform, `CollateralUnavailable` when it does
    not answer, `FormatError` when its answer is malformed. Nothing that it returns is trusted before
    `verify_collateral`.
    """

    def fetch(self, fmspc: bytes, ca: Literal["processor", "platform"], tee: Literal["sgx", "tdx"]) -> Collateral:
        """Get the collateral for an FMSPC (6 bytes), the CA of its PCK certificate, and the kind of its quotes."""
