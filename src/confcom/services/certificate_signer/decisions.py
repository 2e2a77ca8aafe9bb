"""Decides on a request: a nonce for the first one, a certificate for the second one, or a refusal with its reason.

Nothing is believed but what the API server writes (the requester), what the request's own key signed, and what the
enclave claims. Approval by hand does not help a request: evidence is looked at before each signature.

Requests to another signer, such as cert-manager's, are approved instead. That one copies what a request says, so a
request has to say exactly what our certificate would, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.policy import Policy, checked_identity
from confcom.appraisal.policy_file import MAX_POLICY, parse_policy
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import identity, verify_request
from confcom.errors import CollateralError, ConfcomError, FormatError, check_want
from confcom.formats import der
from confcom.formats.attested_certificate import DICE_EVIDENCE, AttestedRequest
from confcom.formats.quote import Quote
from confcom.input_file import read_bounded
from confcom.pki.certificate import check_own_signature
from confcom.pki.serving_pair import (
    Authority,
    CertifiedPod,
    IssuedCertificate,
    alternative_names,
    check_pod_key,
    issue_to_pod,
)
from confcom.protocols.certificate_requests import (
    CLIENT_AUTH,
    NONCE_EXPIRED,
    NONCE_ISSUED,
    NONCE_UNKNOWN,
    SERVER_AUTH,
    SIGNER,
    USAGES,
    Requester,
    SigningRequest,
    name_for,
    nonce_message,
)
from confcom.tokens.azure import NONCE_LIFE, make_nonce, state_of_nonce

_AUDITED = ("mr_enclave", "mr_signer", "isv_prod_id", "isv_svn", "mr_td", "debug")
_AGAIN = "Make a request without evidence for another one."
_ALTERNATIVE_NAMES, _EVIDENCE = der.oid("2.5.29.17"), der.oid(DICE_EVIDENCE)
_EMPTY_NAME = bytes.fromhex("3000")


class Denial(Exception):
    """The request gets no certificate. `reason` is for programs, `message` for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        # Words of a request are shown in terminals.
        self.message = "".join(one if one.isprintable() else "?" for one in message)


@dataclass(frozen=True, slots=True)
class Grant:
    """A certificate, and what the audit record says of the enclave that gets it; without one it is an approval."""

    issued: IssuedCertificate | None
    facts: dict[str, object]


class _Read(NamedTuple):
    policy: Policy
    grace: timedelta


class PodPolicies:
    """The policies of a folder, by service accounts; a changed file counts at once."""

    def __init__(self, folder: Path, *, simulated: bool) -> None:
        self._folder = folder
        self._simulated = simulated
        self._parsed: dict[str, tuple[bytes, _Read]] = {}

    def of(self, requester: Requester) -> tuple[str, Policy, timedelta]:
        """The policy file's name, the policy, and the grace for expired collateral; else a `Denial`.

        `PlatformUnavailable` for want of descriptors.
        """
        names = (f"{requester.namespace}.{requester.account}.toml", f"{requester.namespace}.toml")
        for name in names:
            try:
                content = read_bounded(self._folder / name, MAX_POLICY, patience=0)
            except FileNotFoundError:
                continue
            except OSError as error:
                check_want(error)
                raise _unusable(name, error.strerror or type(error).__name__) from error
            return (name, *self._read(name, content))
        raise Denial(
            "NoPolicy",
            f"There is no policy for service account {requester.namespace}/{requester.account}: an administrator adds "
            f"{names[0]} (or {names[1]}) to the signer's policies.",
        )

    def _read(self, name: str, content: bytes) -> _Read:
        known = self._parsed.get(name)
        if known is None or known[0] != content:
            try:
                file = parse_policy(content, name=name)
                policy = checked_identity(file.policy(accept_simulated=self._simulated))
            except ConfcomError as error:
                raise _unusable(name, error.message) from error
            known = self._parsed[name] = content, _Read(policy, file.grace)
        return known[1]


def _unusable(name: str, why: str) -> Denial:
    return Denial("PolicyUnusable", f"The policy {name} cannot be used: {why}. An administrator has to correct it.")


class Decisions:
    """Decides; it blocks where collateral has to be fetched, and may be called from several threads."""

    def __init__(
        self,
        policies: PodPolicies,
        verifier: QuoteVerifier,
        collateral: Callable[[Quote, datetime], Collateral],
        *,
        trust_domain: str,
        lifetime: timedelta,
        simulated: bool,
    ) -> None:
        self._policies = policies
        self._verifier = verifier
        self._collateral = collateral
        self._trust_domain = trust_domain
        self._lifetime = lifetime
        self._organization = f"{SIGNER} (SIMULATED)" if simulated else SIGNER

    def decide(self, request: SigningRequest, authority: Authority, *, now: datetime, random: bytes) -> Grant:
        """A certificate of this CA, or the approval for another signer's; `random` has 16 bytes for a nonce.

        Raises:
            Denial: it gets none, or a nonce first.
            CollateralError: there is no collateral now; the same call may succeed later.
        """
        try:
            requester = request.requester()
        except FormatError as error:
            raise Denial(
                "NotAPod", f"{error.message}. Pods make requests, each with the token of its own service account."
            ) from error
        _check_usages(request)
        parts, attested = _read_request(request)
        name, policy, grace = self._policies.of(requester)
        secret, context = nonce_secret(authority), nonce_context(requester, parts.public_key)
        if attested is None:
            message = nonce_message(make_nonce(secret, now, random, context), NONCE_LIFE.total_seconds())
            raise Denial(NONCE_ISSUED, message)
        nonce = attested.ra_tls.nonce or b""
        _check_nonce(request.name, nonce, state_of_nonce(nonce, secret, now, context))
        try:
            verified = verify_request(
                attested,
                policy,
                self._collateral(attested.quote, now),
                now=now,
                verifier=self._verifier,
                nonce=nonce,
                purpose=request.signer.encode(),
                grace=grace,
            )
        except CollateralError:
            raise
        except ConfcomError as error:
            why = f"{error.message} ({error.code}, policy {name}). {error.advice()}"
            raise Denial("EvidenceRefused", why) from error
        wanted = CertifiedPod(
            public_key=parts.public_key,
            organization=self._organization,
            pod_uid=requester.pod_uid,
            uri=requester.uri(self._trust_domain),
            dns_names=requester.dns_names() if SERVER_AUTH in request.usages else (),
            server=SERVER_AUTH in request.usages,
            client=CLIENT_AUTH in request.usages,
        )
        facts: dict[str, object] = {
            "uri": wanted.uri,
            "dns_names": list(wanted.dns_names),
            "key_sha256": hashlib.sha256(parts.public_key).hexdigest(),
            "policy": name,
            "identity": {name: value for name, value in identity(verified.quote.body).items() if name in _AUDITED},
        }
        if request.signer != SIGNER:
            _check_content(request, parts, wanted, self._lifetime)
            return Grant(None, facts)
        most = int(self._lifetime.total_seconds())
        asked = most if request.lifetime is None else max(min(request.lifetime, most), 0)
        issued = issue_to_pod(authority, wanted, now=now, lifetime=timedelta(seconds=asked))
        return Grant(issued, {"serial": f"{issued.serial_number:x}", "expires": issued.expires.isoformat()} | facts)


def nonce_secret(authority: Authority) -> bytes:
    """The secret of nonces, which all replicas have: it follows from the CA's key, and goes with it."""
    return hashlib.sha256(b"confcom.dev/attested nonces\0" + authority.key).digest()


def nonce_context(requester: Requester, public_key: bytes) -> bytes:
    """What a nonce is for: this pod and this key."""
    words = (requester.namespace, requester.account, requester.pod_uid)
    return b"\0".join(word.encode() for word in words) + b"\0" + hashlib.sha256(public_key).digest()


def _read_request(request: SigningRequest) -> tuple[der.RequestParts, AttestedRequest | None]:
    """The certification request, signed by its own key, and the evidence in it; else a `Denial`."""
    try:
        parts = der.read_request_parts(request.der())
        check_pod_key(parts.public_key)
        check_own_signature(parts, step="request-signature")
        return parts, AttestedRequest.of(parts)
    except der.DerError as error:
        raise Denial("MalformedRequest", f"spec.request is no certification request: {error}.") from error
    except ConfcomError as error:
        raise Denial("MalformedRequest", f"{error.message}. {error.advice()}") from error


def _check_usages(request: SigningRequest) -> None:
    if request.usages - USAGES or not request.usages & {SERVER_AUTH, CLIENT_AUTH}:
        raise Denial(
            "UsageNotAllowed",
            f"spec.usages may be {', '.join(sorted(USAGES))}, and one of them 'client auth' or 'server auth'; found "
            f"{', '.join(sorted(request.usages)) or 'none'}.",
        )


def _check_content(request: SigningRequest, parts: der.RequestParts, wanted: CertifiedPod, lifetime: timedelta) -> None:
    """Whether a signer that signs what the request says would sign what ours does; else a `Denial`."""
    asked = {identifier: value for identifier, (_, value) in parts.extensions.items()}
    names = alternative_names(wanted.uri, wanted.dns_names).public_bytes()
    alone = parts.only_extensions and parts.subject == _EMPTY_NAME
    if not alone or asked.pop(_EVIDENCE, None) is None or asked != {_ALTERNATIVE_NAMES: names}:
        expected = ", ".join((*wanted.dns_names, wanted.uri))
        raise Denial(
            "ContentNotAllowed",
            f"{request.signer} signs what the request says: it must have an empty subject, the evidence, the "
            f"alternative names {expected} in this order, and nothing else.",
        )
    if request.annotations:
        raise Denial("ContentNotAllowed", f"The request must have no annotations: {request.signer} may read them.")
    if request.lifetime is None or request.lifetime > lifetime.total_seconds():
        most = f"{lifetime.total_seconds():.0f}"
        raise Denial("ContentNotAllowed", f"spec.expirationSeconds must be there, and at most {most}.")


def _check_nonce(name: str, nonce: bytes, state: str) -> None:
    if state == "unknown":
        why = "another pod, another key or another signer" if nonce else "nothing: the evidence has no nonce"
        raise Denial(NONCE_UNKNOWN, f"The nonce in the evidence was made for {why}. {_AGAIN}")
    if state == "expired":
        raise Denial(NONCE_EXPIRED, f"The nonce in the evidence expired: it is good for {NONCE_LIFE}. {_AGAIN}")
    if name != name_for(nonce):
        raise Denial("NameNotOfNonce", f"The request must be called {name_for(nonce)}, so that a nonce is used once.")
