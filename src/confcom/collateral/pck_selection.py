"""Which of a platform's PCK certificates fits its raw TCB best (dcap.md §8, Intel's PCK certificate selection).

A platform that updates its microcode reports a raw TCB that no certificate has exactly; the best certificate is one of
the highest TCB level that the platform still reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confcom.errors import CollateralNotFound
from confcom.formats.tcb_info import TcbInfo
from confcom.protocols.pcs import PckCertificateAnswer

COMPONENTS = 16


class CertificatesUnavailable(CollateralNotFound):
    """The platform is known, but no certificate is for a TCB that it reaches. A caching service answers 462."""


@dataclass(frozen=True, slots=True, order=True)
class _Tcb:
    """Sixteen components, then the PCESVN. The order is total, and agrees with `reaches` where that says something."""

    components: tuple[int, ...]
    pce_svn: int

    def reaches(self, other: _Tcb) -> bool:
        """Whether every component and the PCESVN are at least those of the other."""
        pairs = zip(self.components, other.components, strict=True)
        return self.pce_svn >= other.pce_svn and all(mine >= theirs for mine, theirs in pairs)


def select_pck_certificate(
    certificates: Sequence[PckCertificateAnswer], *, cpu_svn: bytes, pce_svn: int, tcb_info: TcbInfo
) -> PckCertificateAnswer | None:
    """The certificate to use at a raw TCB (CPUSVN 16 bytes, PCESVN); None if the platform reaches none of them.

    (1) each certificate belongs to the highest level of the TCB info that its own TCB reaches, or to none;
    (2) certificates of a higher level come first, and within a level the higher TCB;
    (3) the first one whose TCB the platform reaches in all components and the PCESVN is taken.

    All are of one platform, as the caller knows; those of another FMSPC than the TCB info's are passed over.
    """
    raw = _Tcb(tuple(cpu_svn), pce_svn)
    levels = [_Tcb(level.sgx_components, level.pce_svn) for level in tcb_info.tcb_levels]
    of_the_platform = [found for found in certificates if found.fmspc == tcb_info.fmspc]
    # (1)
    ranked = [(_bucket(_tcb(found), levels), _tcb(found), found) for found in of_the_platform]
    # (2) A stable sort after the other, since one goes up and one goes down.
    ranked.sort(key=lambda entry: entry[1], reverse=True)
    ranked.sort(key=lambda entry: entry[0])
    # (3)
    return next((found for _, tcb, found in ranked if raw.reaches(tcb)), None)


def require_pck_certificate(
    certificates: Sequence[PckCertificateAnswer], *, cpu_svn: bytes, pce_svn: int, tcb_info: TcbInfo
) -> PckCertificateAnswer:
    """The same; `CertificatesUnavailable` if the platform reaches none of them."""
    selected = select_pck_certificate(certificates, cpu_svn=cpu_svn, pce_svn=pce_svn, tcb_info=tcb_info)
    if selected is None:
        raise CertificatesUnavailable(
            f"none of the {len(certificates)} PCK certificates of the platform is for a TCB as low as CPUSVN "
            f"{cpu_svn.hex()}, PCESVN {pce_svn}",
            advice="Update BIOS and microcode, or have the platform's certificates fetched again (refresh?type=certs).",
        )
    return selected


def _bucket(tcb: _Tcb, levels: Sequence[_Tcb]) -> int:
    return next((index for index, level in enumerate(levels) if tcb.reaches(level)), len(levels))


def _tcb(certificate: PckCertificateAnswer) -> _Tcb:
    return _Tcb(tuple(certificate.tcbm[:COMPONENTS]), int.from_bytes(certificate.tcbm[COMPONENTS:], "little"))
