"""What every quote version shares: the kind of evidence, and the signature section as one value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from confcom.formats.certification_data import QeReportCertification


class TeeType(IntEnum):
    """`tee_type` of the header."""

    SGX = 0
    TDX = 0x81


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """The signature section: the same content in every version, only nested differently.

    `signature` is r‖s over the signed bytes by `attestation_key` (x‖y); `certification` holds the QE report that
    vouches for that key, the PCK key's signature over it, and the PCK certificate chain.
    """

    signature: bytes
    attestation_key: bytes
    certification: QeReportCertification
