"""Policies as Azure's clients send them: a JWS around the text, unsigned or signed.

The payload is `{"AttestationPolicy": base64url(text)}`; an empty payload asks for the default. Signed ones carry
their certificate in `x5c` or `jwk.x5c`, and older SDKs spell the algorithms RSA256 and ECDH256.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from confcom.errors import FormatError
from confcom.formats.arguments import decode_base64, encode_base64url, without_bom
from confcom.pki.der import UNREADABLE, der_reason
from confcom.tokens.azure import AzureError, SentPolicy
from confcom.tokens.jws import ReadJws, unsecured
from confcom.tokens.policy_language import MAX_TEXT

MAX_CHAIN = 8
"""Certificates from a signer to its root."""
_PARSING = "PolicyParsingError"
_ALIASES = {"RSA256": "RS256", "ECDH256": "ES256", "RS256": "RS256", "ES256": "ES256"}


def wrap(text: str) -> str:
    """The unsigned JWS of a policy's text."""
    return unsecured({"AttestationPolicy": encode_base64url(text.encode())}, {})


def certificate_jwk(certificate: x509.Certificate) -> dict[str, Any]:
    """The JWK of a signer: `kty` and `x5c`, as Azure's tokens have it."""
    kind = "EC" if isinstance(certificate.public_key(), ec.EllipticCurvePublicKey) else "RSA"
    return {"kty": kind, "x5c": [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]}


def read_policy(body: str | bytes) -> SentPolicy:
    """Read what a client sent as a policy: a JWS, or the bare text.

    Raises:
        AzureError: not text, not a JWS that holds a policy, too long, or signed by another key than its certificate's.
    """
    try:
        text = without_bom(body).decode() if isinstance(body, bytes) else body
    except UnicodeDecodeError as error:
        raise AzureError(f"the policy is no text in UTF-8: {error.reason} at byte {error.start}", _PARSING) from None
    sent = text.strip().strip('"')
    if _is_bare(sent):
        _check_text(sent)
        return SentPolicy(wrap(sent), sent, None)
    try:
        jws = ReadJws.parse(sent)
        text = _text(jws)
    except FormatError as error:
        raise AzureError(f"the policy is no JWS: {error}", "InvalidOperation") from None
    _check_text(text)
    return SentPolicy(sent, text, certificate_of(jws))


def _is_bare(policy: str) -> bool:
    """Whether this is the text of a policy, which may begin with a comment, or end too early: no base64, no JWS."""
    return "{" in policy or ";" in policy or policy.lstrip("\ufeff").lower().startswith("version")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise AzureError("the policy has a zero character, which no database keeps in a text", _PARSING)
    if len(text) > MAX_TEXT:
        raise AzureError(f"the policy has {len(text)} characters, at most {MAX_TEXT} are read", _PARSING)


def _text(jws: ReadJws) -> str:
    if not jws.payload:
        return ""
    try:
        held = jws.claims().get("AttestationPolicy")
        if not isinstance(held, str):
            raise AzureError("the payload of the policy lacks 'AttestationPolicy'", "InvalidOperation")
        # One of Azure's documents has the bare text here.
        return held if _is_bare(held) else decode_base64(held).decode()
    except ValueError as error:
        raise AzureError(f"the payload of the policy cannot be read: {error}", "InvalidOperation") from None


def certificate_of(jws: ReadJws) -> x509.Certificate | None:
    """The certificate of the key that signed; None where nothing is signed.

    Raises:
        AzureError: the signature is not of the key in the header's `x5c` or `jwk.x5c`, its chain is not valid, or the
            header has critical members.
    """
    if jws.critical:
        raise AzureError(f"the policy has critical headers that are not known here: {jws.critical}", "InvalidOperation")
    named = jws.header.get("alg")
    if named == "none":
        if jws.signature:
            raise AzureError("the policy is unsigned ('alg': 'none') and carries a signature", "InvalidOperation")
        return None
    algorithm = _ALIASES.get(named) if isinstance(named, str) else None
    if algorithm is None:
        raise AzureError(f"a policy is signed with RS256 or ES256, found {named!r}", "InvalidOperation")
    jwk = jws.header.get("jwk")
    certificate = signer_of(jws.header.get("x5c") or (jwk.get("x5c") if isinstance(jwk, dict) else None), "the policy")
    if not jws.verify(certificate.public_key(), algorithm):
        raise AzureError("the signature of the policy is not of the key in 'x5c'", "InvalidOperation")
    return certificate


def signer_of(x5c: object, what: str) -> x509.Certificate:
    """The first certificate of `x5c`, the policy signer's; its chain up to the root follows it there.

    Raises:
        AzureError: `x5c` holds no certificates, or no valid chain (`check_signer_chain`).
    """
    if not isinstance(x5c, list) or not x5c or not all(isinstance(each, str) for each in x5c):
        raise AzureError(f"{what} lacks the certificate of its signer in 'x5c'", "InvalidOperation")
    if len(x5c) > MAX_CHAIN:
        raise AzureError(f"'x5c' of {what} has {len(x5c)} certificates, at most {MAX_CHAIN} are read")
    try:
        chain = [x509.load_der_x509_certificate(decode_base64(each)) for each in x5c]
        for certificate in chain:
            certificate.public_key()  # one that cannot be read signs nothing, and would break the list of signers
    except UNREADABLE as error:
        reason = der_reason(error)
        raise AzureError(f"'x5c' of {what} holds no usable certificate: {reason}", "InvalidOperation") from None
    check_signer_chain(chain)
    return chain[0]


def check_signer_chain(chain: Sequence[x509.Certificate]) -> None:
    """A chain from a policy signer to its root, which may be the signer itself, by the rules of Azure Attestation.

    Each certificate is issued by the next, and the root by itself; issuers and the root are CAs (basicConstraints), as
    far up as their path length allows; keyUsage, where present, lets the signer sign and issuers issue.

    Raises:
        AzureError: InvalidParameter, with the certificate and what is wrong with it.
    """
    try:
        for depth, certificate in enumerate(chain):
            issuer = chain[min(depth + 1, len(chain) - 1)]
            if reason := _wrong(certificate, issuer, depth):
                raise AzureError(
                    f"the certificate {_name(certificate.subject)} of a policy signer {reason}", advice=_CHAIN
                )
    except UNREADABLE as error:
        reason = der_reason(error)
        raise AzureError(f"a certificate of a policy signer cannot be read: {reason}", advice=_CHAIN) from None


_CHAIN = "Sign with a self-signed CA certificate, or send its whole chain in x5c: the signer first, the root last."


def _wrong(certificate: x509.Certificate, issuer: x509.Certificate, depth: int) -> str:
    """What is wrong with a certificate that stands `depth` places above the signer; empty if nothing is."""
    usage, constraints = _extension(certificate, x509.KeyUsage), _extension(certificate, x509.BasicConstraints)
    wanted = "keyCertSign" if depth else "digitalSignature"
    if usage is not None and not (usage.key_cert_sign if depth else usage.digital_signature):
        return f"lacks {wanted} in its keyUsage"
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return f"is of the issuer {_name(certificate.issuer)}, which is not the next certificate of its chain"
    if depth or certificate is issuer:
        if constraints is None or not constraints.ca:
            return "is no CA: its basicConstraints are missing, or say CA:FALSE"
        if constraints.path_length is not None and depth - 1 > constraints.path_length:
            return f"has {depth - 1} CAs below it, and its path length is {constraints.path_length}"
    return ""


def _name(name: x509.Name) -> str:
    return repr(name.rfc4514_string()[:80])


_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
