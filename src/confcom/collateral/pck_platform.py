"""What a PCK certificate says: its processor by the PPID, which stays whatever the TCB, and when its chain ends."""

from __future__ import annotations

from datetime import datetime

from confcom.errors import MismatchError
from confcom.pki.certificate import load_certificate
from confcom.pki.chain import verify_chain
from confcom.pki.pem import parse_certificates
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
