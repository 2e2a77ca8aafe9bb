"""Policies as Azure's clients send them: a JWS around the text, unsigned or signed.

The payload is `{"AttestationPolicy": base64url(text)}`; an empty payload asks for the default. Signed ones carry
their certificate in `x5c` or `jwk.x5c`, and older SDKs spell the algorithms RSA256 and ECDH256.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from confcom.errors import FormatError
from confcom.formats.text import decode_base64, encode_base64url
from confcom.tokens.azure import AzureError
from confcom.tokens.jws import ReadJws, unsecured
from confcom.tokens.policy_language import MAX_TEXT

_ALIASES = {"RSA256": "RS256", "ECDH256": "ES256", "RS256": "RS256", "ES256": "ES256"}


@dataclass(frozen=True, slots=True)
class SentPolicy:
    """A policy as it was sent: its text, empty for a reset, and who signed it."""

    jws: str
    text: str
    signer: x509.Certificate | None


def wrap(text: str) -> str:
    """The unsigned JWS of a policy's text."""
    return unsecured({"AttestationPolicy": encode_base64url(text.encode())}, {})


def certificate_jwk(certificate: x509.Certificate) -> dict[str, Any]:
    """The JWK of a signer: `kty` and `x5c`, as Azure's tokens have it."""
    kind = "EC" if isinstance(certificate.public_key(), ec.EllipticCurvePublicKey) else "RSA"
    return {"kty": kind, "x5c": [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]}


def read_policy(body: str) -> SentPolicy:
    """Read what a client sent as a policy: a JWS, or the bare text.

    Raises:
        AzureError: not a JWS that holds a policy, too long, or signed by another key than its certificate's.
    """
    sent = body.strip().strip('"')
    if sent[:40].lower().lstrip("\ufeff").startswith("version"):
        _check_length(sent)
        return SentPolicy(wrap(sent), sent, None)
    try:
        jws = ReadJws.parse(sent)
        text = _text(jws)
    except FormatError as error:
        raise AzureError(f"the policy is no JWS: {error}", "InvalidOperation") from None
    _check_length(text)
    return SentPolicy(sent, text, certificate_of(jws))


def _check_length(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise AzureError(f"the policy has {len(text)} characters, at most {MAX_TEXT} are read", "PolicyParsingError")


def _text(jws: ReadJws) -> str:
    if not jws.payload:
        return ""
    try:
        held = jws.claims().get("AttestationPolicy")
        if not isinstance(held, str):
            raise AzureError("the payload of the policy lacks 'AttestationPolicy'", "InvalidOperation")
        # One of Azure's documents has the bare text here.
        return held if held.lower().startswith("version") else decode_base64(held).decode()
    except ValueError as error:
        raise AzureError(f"the payload of the policy cannot be read: {error}", "InvalidOperation") from None


def certificate_of(jws: ReadJws) -> x509.Certificate | None:
    """The certificate of the key that signed; None where nothing is signed.

    Raises:
        AzureError: the signature is not of the key in the header's `x5c` or `jwk.x5c`.
    """
    named = jws.header.get("alg")
    if named == "none":
        if jws.signature:
            raise AzureError("the policy is unsigned ('alg': 'none') and carries a signature", "InvalidOperation")
        return None
    algorithm = _ALIASES.get(named) if isinstance(named, str) else None
    if algorithm is None:
        raise AzureError(f"a policy is signed with RS256 or ES256, found {named!r}", "InvalidOperation")
    jwk = jws.header.get("jwk")
    chain = jws.header.get("x5c") or (jwk.get("x5c") if isinstance(jwk, dict) else None)
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], str):
        raise AzureError("the header of the signed policy lacks its certificate in 'x5c'", "InvalidOperation")
    try:
        certificate = x509.load_der_x509_certificate(decode_base64(chain[0]))
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AzureError(f"'x5c' of the policy holds no usable certificate: {error}", "InvalidOperation") from None
    if not jws.verify(public, algorithm):
        raise AzureError("the signature of the policy is not of the key in 'x5c'", "InvalidOperation")
    return certificate
