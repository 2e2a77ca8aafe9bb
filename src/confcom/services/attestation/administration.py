"""Policies and their signers: what administrators read and change, by the rules of the trust model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec
from cryptography import x509

from confcom.errors import FormatError
from confcom.formats.arguments import check_members_once, encode_base64url
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_store import AttestationStore, thumbprint
from confcom.tokens.azure import DEFAULT_POLICIES, AttestationType, AzureError, SentPolicy
from confcom.tokens.jws import ReadJws
from confcom.tokens.policy_jws import certificate_jwk, certificate_of, read_policy, signer_of, wrap

TrustModel = Literal["open", "isolated", "shared"]


class PolicyAdministration:
    """Answers of the policy API, each a signed token."""

    def __init__(
        self, store: AttestationStore, appraiser: Appraiser, model: TrustModel, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._appraiser = appraiser
        self._model = model
        self._clock = clock

    def current(self, kind: AttestationType) -> str:
        """The policy in force, as it was sent."""
        return self._appraiser.signed({"x-ms-policy": self.policy(kind).jws})

    def policy(self, kind: AttestationType) -> SentPolicy:
        """The policy in force."""
        default = DEFAULT_POLICIES[kind]
        return self._store.policy(kind) or SentPolicy(wrap(default), default, None)

    def set(self, kind: AttestationType, body: str | bytes, by: str) -> str:
        """Put a policy into force after it was parsed and its signer checked."""
        sent = self._checked(body)
        if not sent.text:
            raise AzureError("the policy is empty", "InvalidOperation", advice=f"Use /policies/{kind}:reset.")
        self._appraiser.checked(sent.text)
        self._store.set_policy(kind, sent, self._clock(), by=by)
        self._appraiser.policy_changed()
        return self._changed("Updated", sent)

    def reset(self, kind: AttestationType, body: str | bytes, by: str) -> str:
        """Return to the default."""
        sent = self._checked(body)
        if sent.text:
            raise AzureError("a reset carries an empty policy", "InvalidOperation")
        self._store.set_policy(kind, None, self._clock(), by=by)
        self._appraiser.policy_changed()
        return self._changed("Removed", sent)

    def signers(self) -> str:
        """The certificates of the accepted policy signers, as a JWKS."""
        keys = [certificate_jwk(certificate) for certificate in self._store.signers()]
        return self._appraiser.signed({"x-ms-policy-certificates": {"keys": keys}})

    def change_signer(self, body: bytes, by: str, *, add: bool) -> str:
        """Add or remove a signer; the request is signed by one that is known."""
        self._refuse_shared()
        jws = _certificate_request(body, "policyCertificateToAdd" if add else "policyCertificateToRemove")
        if certificate_of(jws) not in self._store.signers():
            raise AzureError("the request is not signed by a known policy signer", "InvalidOperation")
        certificate = _certificate_in(jws)
        if not self._store.change_signer(certificate, self._clock(), accepted=add, by=by):
            raise AzureError("the last policy signer cannot be removed", "InvalidOperation")
        return self._appraiser.signed(
            {
                "x-ms-certificate-thumbprint": thumbprint(certificate),
                "x-ms-policycertificates-result": "IsPresent" if add else "IsAbsent",
            }
        )

    def _checked(self, body: str | bytes) -> SentPolicy:
        self._refuse_shared()
        sent = read_policy(body)
        if self._model == "isolated":
            if sent.signer is None:
                raise AzureError("this instance takes signed policies only", "InvalidOperation")
            if sent.signer not in self._store.signers():
                raise AzureError("the signer of the policy is not known here", "InvalidOperation")
        return sent

    def _refuse_shared(self) -> None:
        if self._model == "shared":
            raise AzureError("policies of a shared instance are fixed", "InvalidOperation")

    def _changed(self, result: str, sent: SentPolicy) -> str:
        hashed = encode_base64url(hashlib.sha256(sent.jws.encode()).digest())
        claims: dict[str, Any] = {"x-ms-policy-result": result, "x-ms-policy-token-hash": hashed}
        if sent.signer is not None:
            claims["x-ms-policy-signer"] = certificate_jwk(sent.signer)
        return self._appraiser.signed(claims)


def _certificate_request(body: bytes, member: str) -> ReadJws:
    """The JWT of `certificates:add` or `:remove`: a JSON string, or since 2025-06-01 the `member` of an object."""
    try:
        value = msgspec.json.decode(body)
        check_members_once(body)
        if isinstance(value, dict):
            value = value.get(member)
        if not isinstance(value, str):
            raise AzureError(f"the body lacks the JWT with the certificate ({member})", "InvalidOperation")
        return ReadJws.parse(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AzureError(f"the body is no JWT with a certificate: {error}", "InvalidOperation") from None


def _certificate_in(jws: ReadJws) -> x509.Certificate:
    try:
        claims = jws.claims()
    except FormatError as error:
        raise AzureError(f"the payload of the JWT cannot be read: {error}", "InvalidOperation") from None
    names = ("policyCertificate", "maa-policyCertificate", "x-ms-policyCertificate")
    held = next((claims[name] for name in names if name in claims), None)
    if not isinstance(held, dict):
        raise AzureError("the JWT lacks the claim policyCertificate", "InvalidOperation")
    return signer_of(held.get("x5c"), "policyCertificate")
