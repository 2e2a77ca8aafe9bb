"""PCK certificates: the rules by which one is accepted for a platform, and selected for its raw TCB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from confcom.errors import CollateralNotFound, MismatchError
from confcom.formats.tcb_info import TcbInfo
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import TrustRoots, verify_chain
from confcom.protocols.pcs import PckCertificateAnswer

STEP = "pck-certificate"


def require_same_platform(known: PckCertificateAnswer, found: PckCertificateAnswer, *, roots: TrustRoots) -> None:
    """Refuse a certificate of another processor than the known one's: `MismatchError`.

    A caching service knows platforms by their QE_ID, which no certificate holds. Without this check, a caller with
    another machine's QE_ID and its own encrypted PPID would replace that machine's certificate.
    """
    if _ppid(known, roots) != _ppid(found, roots):
        raise MismatchError(
            "the PCK certificate is of another processor than those known under this QE_ID",
            step=STEP,
            expected="the PPID of the certificates that are in the store",
            found="another PPID",
            advice="If the machine was provisioned again, register it with the user token (POST platforms).",
        )


def require_raw_tcb(found: PckCertificateAnswer, *, cpu_svn: bytes, pce_svn: int) -> None:
    """Refuse a certificate for a TCB that the raw one (CPUSVN 16 bytes, PCESVN) does not reach: `MismatchError`.

    Its TCBm is that of the certificate itself. A platform cannot derive the key of such a certificate.
    """
    if not _Tcb(tuple(cpu_svn), pce_svn).reaches(own := _tcb(found)):
        raise MismatchError(
            "the PCK certificate is for a TCB that the platform does not reach",
            step=STEP,
            expected=f"at most CPUSVN {cpu_svn.hex()}, PCESVN {pce_svn}",
            found=f"CPUSVN {bytes(own.components).hex()}, PCESVN {own.pce_svn}",
        )


def require_stated(answer: PckCertificateAnswer, found: PckCertificateAnswer) -> None:
    """Refuse an answer that states other values than its certificate has (`found`): `MismatchError`."""
    for name, stated, own in (
        ("TCBm", answer.tcbm, found.tcbm),
        ("FMSPC", answer.fmspc, found.fmspc),
        ("CA", (answer.ca or "").encode() or None, (found.ca or "").encode()),
    ):
        if stated is not None and stated != own:
            raise MismatchError(
                f"the {name} that comes with the PCK certificate is another than the certificate's",
                step=STEP,
                expected=(own or b"").hex(),
                found=stated.hex(),
            )


def chain_expires(answer: PckCertificateAnswer) -> datetime:
    """When the first certificate of the chain ends."""
    return min(load_certificate(der, structure="PCK", field="certificate").not_after for der in whole_chain(answer))


def _ppid(answer: PckCertificateAnswer, roots: TrustRoots) -> bytes:
    return verify_chain(whole_chain(answer), roots=roots, kind="pck", step=STEP).extension.ppid


def whole_chain(answer: PckCertificateAnswer) -> list[bytes]:
    """The DER of the PCK certificate and of its issuers."""
    leaf = parse_certificates(answer.certificate, structure="PCK certificate", limit=1)
    return [*leaf, *parse_certificates(answer.issuer_chain, structure="PCK certificate issuer chain")]


# Selection of a PCK certificate for a raw TCB (dcap.md §8, Intel's PCK certificate selection library)
#
# A platform that updates its microcode reports a raw TCB that no certificate has exactly; the best certificate is one
# of the highest TCB level that the platform still reaches.


COMPONENTS = 16


class CertificatesUnavailable(CollateralNotFound):
    """The platform is known, but no certificate is for a TCB that it reaches. A caching service answers 462."""


@dataclass(frozen=True, slots=True, order=True)
class _Tcb:
    """Sixteen components, then the PCESVN. The order is total, and agrees with `reaches` where that holds."""

    components: tuple[int, ...]
    pce_svn: int

    def reaches(self, other: _Tcb) -> bool:
        """Whether every component and the PCESVN are at least those of the other."""
        pairs = zip(self.components, other.components, strict=True)
        return self.pce_svn >= other.pce_svn and all(mine >= theirs for mine, theirs in pairs)


def select_pck_certificate(
    certificates: Sequence[PckCertificateAnswer], *, cpu_svn: bytes, pce_svn: int, tcb_info: TcbInfo
) -> PckCertificateAnswer:
    """The certificate to use at a raw TCB (CPUSVN 16 bytes, PCESVN).

    (1) each certificate belongs to the highest level of the TCB info that its own TCB reaches, or to none;
    (2) certificates of a higher level come first, and within a level the higher TCB;
    (3) the first one is taken of which the platform reaches the TCB, in all components and the PCESVN.

    All are of one platform, as the caller knows; those of another FMSPC than the TCB info's are passed over. If the
    platform reaches none of them: `CertificatesUnavailable`.
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
    selected = next((found for _, tcb, found in ranked if raw.reaches(tcb)), None)
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
