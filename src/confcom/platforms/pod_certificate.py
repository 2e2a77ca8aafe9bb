"""An ordinary certificate for a pod, from the certificate signer of its cluster, for a key that is made here.

The process that calls this makes the key and keeps it in its memory: in an enclave, key and request never leave it.
What goes to the API server is public: the key's public half, evidence and nonce.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from confcom.appraisal.peer import PURPOSE_CLAIM
from confcom.errors import ClusterError, ClusterRefused, FormatError
from confcom.formats.arguments import decode_base64
from confcom.formats.attested_certificate import DICE_EVIDENCE, write_claims, write_ra_tls
from confcom.pki.serving_pair import alternative_names, authorities_in
from confcom.protocols.certificate_requests import (
    APPROVED,
    CLIENT_AUTH,
    DENIED,
    FAILED,
    NONCE_EXPIRED,
    NONCE_ISSUED,
    NONCE_UNKNOWN,
    SERVER_AUTH,
    SIGNER,
    SigningRequest,
    name_for,
    nonce_of,
)

if TYPE_CHECKING:
    from confcom.cluster.certificate_requests import CertificateRequests
    from confcom.platforms.quoting import QuoteSource

MANAGER = "confcom-pod-certificate"
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two reads of a request that waits."""
LIFETIME = timedelta(days=1)
"""Of certificates of other signers, which have defaults of months."""
ATTEMPTS = 3
"""Nonces that are asked for: one expires if the quote takes minutes."""
REPORT_DATA_SIZE = 64


@dataclass(frozen=True, slots=True)
class PodCertificate:
    """A certificate and the CAs by which peers are to be verified, PEM both, and its key, which is kept in memory.

    Of another signer than ours, the certificate has its chain after it, and the CAs are empty: that signer publishes
    them.
    """

    certificate: bytes
    authorities: bytes
    key: bytes = field(repr=False)
    """PEM, PKCS #8, not encrypted."""

    @property
    def renew_at(self) -> datetime:
        """When to ask for its successor: after two thirds of its life."""
        found = x509.load_pem_x509_certificate(self.certificate)
        return found.not_valid_before_utc + (found.not_valid_after_utc - found.not_valid_before_utc) * 2 / 3


def request_certificate(
    quotes: QuoteSource,
    *,
    usages: Sequence[str] = (SERVER_AUTH, CLIENT_AUTH),
    lifetime: timedelta | None = None,
    timeout: float = 120.0,
    kubeconfig: str | None = None,
    signer: str = SIGNER,
    trust_domain: str = "cluster.local",
) -> PodCertificate:
    """Make a key on P-256 and get a certificate for it; blocks, so an asyncio program calls it in a thread.

    The names in the certificate are those of the pod's service account. The credentials are the pod's own token, or
    those of `kubeconfig`. `timeout` is in seconds. Call it again after `renew_at`: each certificate gets another key.

    `signer` may be another one that the certificate signer approves for, such as clusterissuers.cert-manager.io/NAME.
    `trust_domain` is then the certificate signer's setting, and `lifetime` by default 24 hours.

    Raises:
        ClusterRefused: the signer denied the request, or the account may make none; the message says why.
        ClusterError: the API server or the signer did not answer in time.
        PlatformError: there is no quote.
    """
    from confcom.cluster.certificate_requests import CertificateRequests  # lightkube comes with the extra kube alone

    async def run() -> PodCertificate:
        requests = CertificateRequests(kubeconfig, MANAGER)
        try:
            async with asyncio.timeout(timeout):
                return await _request(requests, quotes, usages, lifetime, signer, trust_domain)
        except TimeoutError as error:
            raise ClusterError(
                f"there was no certificate within {timeout:g} s",
                advice="Check that the certificate signer runs: confcom addon show.",
            ) from error
        finally:
            await requests.close()

    return asyncio.run(run())


async def _request(
    requests: CertificateRequests,
    quotes: QuoteSource,
    usages: Sequence[str],
    lifetime: timedelta | None,
    signer: str,
    trust_domain: str,
) -> PodCertificate:
    key, ours = ec.generate_private_key(ec.SECP256R1()), signer == SIGNER
    life = LIFETIME if lifetime is None and not ours else lifetime
    seconds = None if life is None else int(life.total_seconds())
    plain, refused = signing_request(key), ("", "")
    for _ in range(ATTEMPTS):
        first = f"confcom-{secrets.token_hex(16)}"
        await requests.create(first, plain, usages, seconds, signer=signer)
        asked = await _decided(requests, first)
        reason, message = asked.conditions.get(DENIED, ("", ""))
        if reason != NONCE_ISSUED:
            raise _refused(asked)
        nonce = _nonce(message)
        evidence = await asyncio.to_thread(make_evidence, quotes, key, nonce, signer)
        names = None if ours else _names(asked, usages, trust_domain)
        await requests.create(name_for(nonce), signing_request(key, evidence, names), usages, seconds, signer=signer)
        found = await _decided(requests, name_for(nonce))
        if found.certificate:
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            if not ours:
                return PodCertificate(found.certificate, b"", private)
            leaf, *authorities = authorities_in(found.certificate)
            return PodCertificate(leaf, b"".join(authorities), private)
        refused = found.conditions.get(DENIED) or found.conditions.get(FAILED) or refused
        # Unknown: the CA has changed in between, and with it the secret of nonces.
        if refused[0] not in (NONCE_EXPIRED, NONCE_UNKNOWN):
            raise _refused(found)
    raise ClusterRefused(f"the certificate signer refused: {refused[1]}", reason=refused[0])


def _names(asked: SigningRequest, usages: Sequence[str], trust_domain: str) -> x509.SubjectAlternativeName:
    """The names that another signer copies: those that the API server vouches for."""
    try:
        pod = asked.requester()
    except FormatError as error:
        raise ClusterRefused(f"this is no pod: {error.message}", advice=error.advice()) from error
    return alternative_names(pod.uri(trust_domain), pod.dns_names() if SERVER_AUTH in usages else ())


def _nonce(message: str) -> bytes:
    try:
        return decode_base64(nonce_of(message))
    except ValueError as error:
        raise ClusterError(f"the certificate signer gave no nonce: {error}") from error


async def _decided(requests: CertificateRequests, name: str) -> SigningRequest:
    """The request once there is a certificate, a denial or a failure."""
    pause = FIRST_PAUSE
    while True:
        document = await requests.get(name)
        if document is None:
            raise ClusterRefused(f"the certificate request {name} was deleted before it was decided")
        try:
            found = SigningRequest.parse(document)
        except FormatError as error:
            raise ClusterError(f"the API server's certificate request {name} cannot be read: {error}") from error
        if found.is_decided:
            return found
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _refused(request: SigningRequest) -> ClusterRefused:
    reason, message = request.conditions.get(DENIED) or request.conditions.get(FAILED) or ("", "")
    if not message and APPROVED in request.conditions:
        message = "the request was approved, and there is no certificate"
    return ClusterRefused(
        f"the certificate signer refused ({reason}): {message}",
        reason=reason,
        advice="Correct what the message names; `kubectl describe csr` shows it too.",
    )


def make_evidence(quotes: QuoteSource, key: ec.EllipticCurvePrivateKey, nonce: bytes, signer: str = SIGNER) -> bytes:
    """Evidence that the key is this enclave's, for this nonce and this signer alone, as interoperable RA-TLS."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims = write_claims(hashlib.sha256(public).digest(), nonce, **{PURPOSE_CLAIM: signer.encode()})
    report_data = hashlib.sha256(claims).digest().ljust(REPORT_DATA_SIZE, b"\0")
    return write_ra_tls(quotes.quote(report_data).quote, claims)


def signing_request(
    key: ec.EllipticCurvePrivateKey,
    evidence: bytes | None = None,
    names: x509.SubjectAlternativeName | None = None,
) -> bytes:
    """A certification request in PEM, with an empty subject; evidence and names are extensions that it asks for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if evidence is not None:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(DICE_EVIDENCE), evidence)
        builder = builder.add_extension(extension, critical=False)
    if names is not None:
        builder = builder.add_extension(names, critical=True)  # the subject is empty
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
