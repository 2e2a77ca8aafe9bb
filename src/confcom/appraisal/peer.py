"""Peers with attested certificates: the evidence vouches for the key of the certificate, and its holder is acceptable.

The order of the rules: (1) the certificate is well formed and carries one evidence; (2) it signed itself and is valid
now; (3) the quote is authentic; (4) its report data is the hash that the format prescribes, and nothing else; (5) that
hash covers the certificate's key; (6) policy, TCB and dates of collateral; (7) nonce and age, where they are asked for.

What this proves: the key was in an enclave that the policy accepts when the quote was made. That the peer holds the
key is proven by the TLS handshake alone. A certificate can be shown again, and any machine with the same enclave may
show its own (docs/explanation/attested-certificates.md).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from confcom.appraisal.findings import Check, passed
from confcom.errors import BindingError, CertificateError
from confcom.formats import der
from confcom.formats.attested_certificate import (
    EVIDENCE_EXTENSIONS,
    MAX_ATTESTED_CERTIFICATE,
    STRUCTURE,
    AttestedCertificate,
    AttestedRequest,
    CertificateFormat,
)
from confcom.formats.quote import TeeType
from confcom.pki.certificate import check_own_signature, parse_certificates

SIGNATURE_STEP = "certificate-signature"
VALIDITY_STEP = "certificate-validity"
BINDING_STEP = "certificate-binding"
KEY_STEP = "certificate-key"
NONCE_STEP = "certificate-nonce"
PURPOSE_STEP = "certificate-purpose"
PURPOSE_CLAIM = "purpose"
"""The claim that separates evidence of one use from that of others."""
AGE_STEP = "certificate-age"
_REPORT_DATA_SIZE = 64
_MAY_BE_CRITICAL = {*EVIDENCE_EXTENSIONS, *(der.oid(f"2.5.29.{number}") for number in (15, 17, 19, 37))}
"""Evidence, key usage, alternative names, basic constraints, extended key usage."""
MAX_ATTESTED_PEM = 2 * MAX_ATTESTED_CERTIFICATE
"""Bytes of a file with an attested certificate, with text around it."""


def read_attested_certificate(data: bytes) -> AttestedCertificate:
    """Read an attested certificate, DER or one PEM block."""
    if data.startswith(bytes((der.SEQUENCE,))):
        return AttestedCertificate.parse(data)
    ders = parse_certificates(data, structure=STRUCTURE, limit=1, size=MAX_ATTESTED_PEM)
    return AttestedCertificate.parse(ders[0])


def check_certificate(certificate: AttestedCertificate, now: datetime) -> tuple[Check, ...]:
    """Step 2."""
    check_own_signature(certificate.parts, step=SIGNATURE_STEP)
    for identifier, (critical, _) in certificate.parts.extensions.items():
        if critical and identifier not in _MAY_BE_CRITICAL:
            raise CertificateError(
                "the certificate has a critical extension that is not known",
                step=VALIDITY_STEP,
                expected="none, as RFC 5280 demands",
                found=der.oid_text(identifier),
                advice="Let the peer make a certificate without it, or with the extension not critical.",
            )
    return passed(SIGNATURE_STEP, "signed by its own key", "good signature"), check_validity(certificate, now)


def check_validity(certificate: AttestedCertificate, now: datetime) -> Check:
    """Step 2, the dates alone."""
    begin, end = certificate.not_before, certificate.not_after
    expected, found = f"valid at {_text(now)}", f"{_text(begin)} to {_text(end)}"
    if not begin <= now <= end:
        raise CertificateError(
            "the certificate is expired" if end < now else "the certificate is not valid yet",
            step=VALIDITY_STEP,
            expected=expected,
            found=found,
            advice="Let the peer make a new certificate, or state the time to judge at.",
        )
    return passed(VALIDITY_STEP, expected, found)


def check_binding(certificate: AttestedCertificate | AttestedRequest) -> tuple[Check, ...]:
    """Steps 4 and 5."""
    report_data, rules = certificate.quote.report_data, list(_rules(certificate))
    rule = binding_of(certificate)
    if not rule:
        what = "certificate" if isinstance(certificate, AttestedCertificate) else "request"
        raise BindingError(
            f"the evidence ({certificate.format}) is not for this {what}: its report data is another hash",
            step=BINDING_STEP,
            expected="; or ".join(f"{digest.hex()} ({name}), then zeros" for name, digest in rules),
            found=report_data.hex(),
            advice="The quote was copied from another certificate, or the generator uses an unknown format.",
        )
    key = certificate.public_key
    found = passed(BINDING_STEP, f"{certificate.format}: {rule}", report_data.hex())
    ra_tls, claims = certificate.ra_tls, certificate.evidence.custom_claims
    if ra_tls is not None:
        digest, signed = hashlib.new(ra_tls.hash_name, key).digest(), ra_tls.key_hash
        what = f"{ra_tls.hash_name} of the key"
    elif claims is not None:
        digest, signed, what = _pem(key), claims, "the key in PEM with its final NUL"
    else:
        return (found,)
    if digest != signed:
        raise BindingError(
            f"the claims that the enclave vouches for are of another key: expected {what}",
            step=KEY_STEP,
            expected=digest.hex(),
            found=signed.hex(),
        )
    return found, passed(KEY_STEP, what, digest.hex())


def binding_of(certificate: AttestedCertificate | AttestedRequest) -> str:
    """The rule by which the report data binds the key or the claims; empty when it does neither.

    All 64 bytes count: a hash, and then zeros. Generators leave the rest zero, and some verifiers never look there.
    """
    report_data = certificate.quote.report_data
    return next((n for n, digest in _rules(certificate) if digest.ljust(_REPORT_DATA_SIZE, b"\0") == report_data), "")


def _rules(certificate: AttestedCertificate | AttestedRequest) -> Iterator[tuple[str, bytes]]:
    key, kind = certificate.public_key, certificate.format
    if certificate.ra_tls is not None:
        yield "SHA-256 of the claims", hashlib.sha256(certificate.ra_tls.claims).digest()
        if certificate.quote.tee is TeeType.TDX:  # as Intel's generator does, against the text
            yield "SHA-384 of the claims", hashlib.sha384(certificate.ra_tls.claims).digest()
    elif certificate.evidence.custom_claims is not None:
        yield "SHA-256 of the custom claims", hashlib.sha256(certificate.evidence.custom_claims).digest()
    else:
        if kind is not CertificateFormat.GRAMINE:
            yield "SHA-256 of the key in PEM", hashlib.sha256(_pem(key)).digest()
        if kind in (CertificateFormat.GRAMINE, CertificateFormat.OE_REPORT):  # the latter is EGo's
            yield "SHA-256 of the key", hashlib.sha256(key).digest()


def _pem(key: bytes) -> bytes:
    """A key in PEM as OpenSSL and mbedTLS write it, with the NUL that C counts."""
    digits = base64.b64encode(key)
    lines = b"".join(digits[start : start + 64] + b"\n" for start in range(0, len(digits), 64))
    return b"-----BEGIN PUBLIC KEY-----\n" + lines + b"-----END PUBLIC KEY-----\n\0"


def check_nonce(certificate: AttestedCertificate | AttestedRequest, nonce: bytes | None) -> None:
    """Step 7: the nonce, where one is asked for, is that of the evidence."""
    if nonce is None:
        return
    found = None if certificate.ra_tls is None else certificate.ra_tls.nonce
    if found != nonce:
        raise BindingError(
            "the evidence was not made for this request: it has " + ("no nonce" if found is None else "another nonce"),
            step=NONCE_STEP,
            expected=nonce.hex(),
            found="none" if found is None else found.hex(),
        )


def check_age(certificate: AttestedCertificate, now: datetime, max_age: timedelta | None) -> None:
    """Step 7: the age, where it is asked for."""
    if max_age is not None and now - certificate.not_before > max_age:
        raise CertificateError(
            f"the certificate is older than {max_age}",
            step=AGE_STEP,
            expected=f"valid from {_text(now - max_age)} or later",
            found=_text(certificate.not_before),
            advice="Let the peer renew its certificate and its evidence more often.",
        )


def certificate_facts(certificate: AttestedCertificate) -> dict[str, Any]:
    """What `confcom verify --json` says of a certificate that was read."""
    return {
        "format": certificate.format.value,
        "binding": binding_of(certificate) or None,
        "public_key_sha256": hashlib.sha256(certificate.public_key).hexdigest(),
        "not_before": _text(certificate.not_before),
        "not_after": _text(certificate.not_after),
        "nonce": certificate.ra_tls.nonce.hex() if certificate.ra_tls and certificate.ra_tls.nonce else None,
    }


def _text(time: datetime) -> str:
    """RFC 3339, also of the year 1, in which certificates of EGo begin."""
    return f"{time.replace(tzinfo=None, microsecond=0).isoformat()}Z"
