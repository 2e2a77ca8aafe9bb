"""Signing keys that an enclave vouches for: the key's certificate carries a quote over the key.

The quote's report data begins with SHA-256 over the PEM of the public key and the NUL that ends it, as in the
certificates of Azure Attestation and of Open Enclave. Ours have Open Enclave's newer extension with an Open Enclave
report; those of other issuers are read in every form of `formats/attested_certificate.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.policy import Policy
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote
from confcom.appraisal.result import verify_certificate
from confcom.errors import FormatError, VerificationError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import REPORT_VERSION, OeReportHeader, OeReportType
from confcom.formats.quote import Quote
from confcom.pki.serving_pair import certificate_builder

OPEN_ENCLAVE_REPORT = x509.ObjectIdentifier("1.3.6.1.4.1.311.105.1")


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
    extension = x509.UnrecognizedExtension(OPEN_ENCLAVE_REPORT, report)
    return self_signed(private, own.subject, own.not_valid_before_utc, own.not_valid_after_utc, extension)


def self_signed(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    name: x509.Name,
    begin: datetime,
    end: datetime,
    *more: x509.ExtensionType,
) -> x509.Certificate:
    """A certificate of a signing key by itself, with further extensions that are not critical."""
    builder = certificate_builder(name, name, private.public_key(), begin, end, ca=True)
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private, SHA256())


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

    `policy` must name an enclave or a signer. `collateral` gives what judges the quote that it gets.

    Raises:
        KeyNotAttested: the certificate carries no evidence, or there is none.
        ConfcomError: the evidence is not authentic, not acceptable, or for another key.
    """
    der = b"" if certificate is None else certificate.public_bytes(Encoding.DER)
    try:
        attested = AttestedCertificate.parse(der)
    except FormatError as error:
        raise KeyNotAttested(f"no enclave vouches for the signing key: {error}") from error
    judging = collateral(attested.quote)
    return verify_certificate(der, policy, judging, now=now, verifier=verifier, grace=grace).quote
