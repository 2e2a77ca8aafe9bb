"""Signing keys that an enclave vouches for: the key's certificate carries a quote over the key.

The quote's report data begins with SHA-256 over the PEM of the public key and the NUL that ends it, as in the
certificates of Azure Attestation and of Open Enclave. Ours have Open Enclave's newer extension with an Open Enclave
report; Azure's, with a DER OCTET STRING of the raw quote, are read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.policy import AllOf, Policy, ReportData
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import judge, read_evidence
from confcom.errors import VerificationError
from confcom.formats.open_enclave import REPORT_VERSION, OeReportHeader, OeReportType
from confcom.formats.quote import Quote

OPEN_ENCLAVE_REPORT = x509.ObjectIdentifier("1.3.6.1.4.1.311.105.1")
AZURE_QUOTE = x509.ObjectIdentifier("1.2.840.113556.10.1.1")
_LONG_OCTET_STRING = b"\x04\x82"
"""DER: an OCTET STRING with a length of two bytes."""


class KeyNotAttested(VerificationError):
    """No enclave vouches for the key that signed a token."""

    code = "key-not-attested"
    default_advice = "Fetch the key set again if the issuer attests its keys (--attest-keys); else leave the check out."


def report_data_of(public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """64 bytes of report data by which an enclave vouches for a key."""
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem + b"\0").digest() + bytes(32)


def attested_certificate(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    own: x509.Certificate,
    quote: Callable[[bytes], bytes],
) -> x509.Certificate:
    """A certificate of the key as `own` is, with a quote of this enclave. `quote` makes one over 64 bytes."""
    made = quote(report_data_of(private.public_key()))
    report = bytes(OeReportHeader(REPORT_VERSION, OeReportType.REMOTE, len(made))) + made
    return (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(own.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.UnrecognizedExtension(OPEN_ENCLAVE_REPORT, report), critical=False)
        .sign(private, SHA256())
    )


def check_attested_key(
    certificate: x509.Certificate | None,
    collateral: Callable[[Quote], Collateral],
    policy: Policy,
    *,
    verifier: QuoteVerifier,
    now: datetime,
    grace: timedelta = timedelta(),
) -> VerifiedQuote:
    """The verified quote of the enclave that vouches for the certificate's key, if the policy accepts it.

    `collateral` gives what judges the quote that it gets.

    Raises:
        KeyNotAttested: there is no quote in the certificate.
        ConfcomError: the quote is not authentic, not acceptable, or over another key.
    """
    evidence = None if certificate is None else evidence_in(certificate)
    if certificate is None or evidence is None:
        raise KeyNotAttested("the certificate of the signing key carries no quote")
    public: Any = certificate.public_key()
    bound = AllOf(policy, ReportData(report_data_of(public)[:32]))
    file = read_evidence(evidence)
    return judge(file, collateral(file.quote), verifier=verifier, policy=bound, now=now, grace=grace).require()


def evidence_in(certificate: x509.Certificate) -> bytes | None:
    """The evidence in a certificate's extension, as `confcom verify` takes it; None if there is none."""
    for oid in (OPEN_ENCLAVE_REPORT, AZURE_QUOTE):
        try:
            held = certificate.extensions.get_extension_for_oid(oid).value
        except (x509.ExtensionNotFound, ValueError):
            continue
        value = held.value if isinstance(held, x509.UnrecognizedExtension) else b""
        wrapped = value[:2] == _LONG_OCTET_STRING and int.from_bytes(value[2:4]) == len(value) - 4
        return value[4:] if wrapped else value
    return None
