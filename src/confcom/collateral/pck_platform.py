"""What a PCK certificate says: its processor by the PPID, which stays whatever the TCB, and when its chain ends."""

from __future__ import annotations

from datetime import datetime
from operator import gt

from confcom.errors import MismatchError
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer

STEP = "pck-certificate"


def require_same_platform(known: PckCertificateAnswer, found: PckCertificateAnswer, *, roots: TrustRoots) -> None:
    """Refuse a certificate of another processor than the known one's: `MismatchError`.

    A caching service knows platforms by their QE_ID, which no certificate holds. Without this, anybody who asks with
    another machine's QE_ID and his own encrypted PPID puts his certificate in the place of the machine's.
    """
    if _ppid(known, roots) != _ppid(found, roots):
        raise MismatchError(
            "the PCK certificate is of another processor than those known under this QE_ID",
            step=STEP,
            expected="the PPID of the certificates that are in the store",
            found="another PPID",
            advice="If the machine was provisioned anew, register it again with the user token (POST platforms).",
        )


def require_raw_tcb(found: PckCertificateAnswer, *, cpu_svn: bytes, pce_svn: int) -> None:
    """Refuse a certificate for a TCB that the raw one (CPUSVN 16 bytes, PCESVN) does not reach: `MismatchError`.

    Its TCBm is that of the certificate itself. A platform cannot derive the key of such a certificate.
    """
    components, svn = found.tcbm[:16], int.from_bytes(found.tcbm[16:], "little")
    if svn > pce_svn or any(map(gt, components, cpu_svn)):
        raise MismatchError(
            "the PCK certificate is for a TCB that the platform does not reach",
            step=STEP,
            expected=f"at most CPUSVN {cpu_svn.hex()}, PCESVN {pce_svn}",
            found=f"CPUSVN {components.hex()}, PCESVN {svn}",
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
    ders = (
        der for pem in (answer.certificate, answer.issuer_chain) for der in parse_certificates(pem, structure="PCK")
    )
    return min(load_certificate(der, structure="PCK", field="certificate").not_valid_after_utc for der in ders)


def _ppid(answer: PckCertificateAnswer, roots: TrustRoots) -> bytes:
    leaf = parse_certificates(answer.certificate, structure="PCK certificate", limit=1)
    issuers = parse_certificates(answer.issuer_chain, structure="PCK certificate issuer chain")
    return verify_chain([*leaf, *issuers], roots=roots, kind="pck", step=STEP).extension.ppid
