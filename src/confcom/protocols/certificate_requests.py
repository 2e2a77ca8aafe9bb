"""CertificateSigningRequests of Kubernetes for certificates of attested pods.

A requester writes two objects, because a request cannot be changed once it is there:

1. A request without evidence. The signer denies it with the reason `NonceIssued`, and the nonce in the message.
2. A request for the same key with evidence over that nonce, under the name that `name_for` gives. The API server keeps
   names unique, so a nonce is used once, without any memory of the signer.

So a requester needs the rights to create requests and to read one by its name, and no way to the signer. The nonce
holds for the pod and the key of the first request alone.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from confcom.errors import ConfigError, FormatError

SIGNER = "confcom.dev/attested"
"""The signer's name; also the purpose that the evidence must claim."""
SIGNER_NAME = re.compile(r"[a-z0-9][-a-z0-9.]*\.[-a-z0-9.]*[a-z0-9]/[A-Za-z0-9][-A-Za-z0-9._:]{0,252}")
EVENTS_CONTROLLER = "confcom.dev/certificate-signer"
"""The reporting controller of the events about pods that get no certificate."""
GROUP, VERSION, PLURAL = "certificates.k8s.io", "v1", "certificatesigningrequests"
APPROVED, DENIED, FAILED = "Approved", "Denied", "Failed"
NONCE_ISSUED = "NonceIssued"
NONCE_EXPIRED, NONCE_UNKNOWN = "NonceExpired", "NonceUnknown"
SERVER_AUTH, CLIENT_AUTH = "server auth", "client auth"
USAGES = frozenset((SERVER_AUTH, CLIENT_AUTH, "digital signature", "key encipherment"))
"""Usages of a request; the latter two are what every TLS certificate has."""
MAX_REQUEST = 160 * 1024
"""Bytes of a request in PEM: evidence takes up to 96 KiB, and base64 a third more."""
MAX_MESSAGE = 2048
"""Characters of a condition's message."""

_STRUCTURE = "CertificateSigningRequest"
_KUBERNETES = re.compile(r"(?:.*\.)?(?:kubernetes|k8s)\.io/.*")
_ACCOUNT = re.compile(
    r"system:serviceaccount:([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?):([a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?)"
)
_WORD = re.compile(r"[A-Za-z0-9][-A-Za-z0-9.]{0,252}")
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_NONCE = re.compile(r"\bnonce=([A-Za-z0-9_-]{16,128})")
_POD = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
_NODE = "authentication.kubernetes.io/node-name"
_PEM = re.compile(rb"\s*-----BEGIN CERTIFICATE REQUEST-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE REQUEST-----\s*")


class Requester(NamedTuple):
    """The pod that made a request, as the API server knows it by the pod's token."""

    namespace: str
    account: str
    pod: str
    pod_uid: str
    node: str
    """Empty where the API server does not say."""

    def uri(self, trust_domain: str) -> str:
        """The name of the pod's service account, in the form of SPIFFE."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.account}"

    def dns_names(self) -> tuple[str, ...]:
        """The names of the Service that is called as the service account; none where no Service can be called so."""
        if not _LABEL.fullmatch(self.account):
            return ()
        name = f"{self.account}.{self.namespace}.svc"
        return name, f"{name}.cluster.local"


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A request with what has been decided about it."""

    name: str
    uid: str
    signer: str
    request: bytes
    """PEM."""
    usages: frozenset[str]
    lifetime: int | None
    """Seconds that the requester asks for."""
    conditions: Mapping[str, tuple[str, str]]
    """Reason and message of each, by its type."""
    certificate: bytes
    """PEM; empty until it is issued."""
    annotations: Mapping[str, Any]
    spec: Mapping[str, Any]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> SigningRequest:
        """Read an object of the API; `FormatError` if it is none."""
        try:
            metadata, spec, status = document["metadata"], document["spec"], document.get("status") or {}
            conditions = status.get("conditions") or ()
            return cls(
                name=str(metadata["name"]),
                uid=str(metadata["uid"]),
                signer=str(spec["signerName"]),
                request=b64decode(spec["request"], validate=True),
                usages=frozenset(map(str, spec.get("usages") or ())),
                lifetime=None if spec.get("expirationSeconds") is None else int(spec["expirationSeconds"]),
                conditions={
                    str(one["type"]): (str(one.get("reason", "")), str(one.get("message", ""))) for one in conditions
                },
                certificate=b64decode(status.get("certificate") or "", validate=True),
                annotations=metadata.get("annotations") or {},
                spec=spec,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"it lacks what every request has: {error!r}", structure=_STRUCTURE, field="") from error

    @property
    def is_decided(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.certificate) or DENIED in self.conditions or FAILED in self.conditions

    def der(self) -> bytes:
        """The request in DER; `FormatError` if it is too large, or not exactly one block of PEM."""
        if len(self.request) > MAX_REQUEST:
            raise _error(f"{len(self.request)} bytes are over the limit {MAX_REQUEST}", "spec.request")
        found = _PEM.fullmatch(self.request)
        if found is None:
            raise _error("is not one CERTIFICATE REQUEST in PEM", "spec.request")
        try:
            return b64decode(b"".join(found[1].split()), validate=True)
        except Base64Error as error:
            raise _error(f"is not base64: {error}", "spec.request") from error

    def requester(self) -> Requester:
        """The pod that made the request; `FormatError` if no pod did."""
        account = _ACCOUNT.fullmatch(str(self.spec.get("username", "")))
        no_account = _error("is no service account", "spec.username")
        if account is None:
            raise no_account
        extra, groups = self.spec.get("extra") or {}, self.spec.get("groups") or ()
        try:
            missing = {"system:serviceaccounts", f"system:serviceaccounts:{account[1]}"}.difference(groups)
            pod, uid, node = (list(map(str, extra.get(key) or ())) for key in (_POD, POD_UID, _NODE))
        except (TypeError, AttributeError) as error:
            raise _error("is not what an API server writes", "spec.extra") from error
        if missing:
            raise no_account
        if len(pod) != 1 or len(uid) != 1:
            raise _error("names no pod: the requester's token is not bound to one", "spec.extra")
        if not all(map(_WORD.fullmatch, (*pod, *uid, *node))):
            raise _error("has a pod, a uid or a node that are no names", "spec.extra")
        return Requester(account[1], account[2], pod[0], uid[0], node[0] if node else "")


def check_other_signers(names: Iterable[str], *, simulated: bool) -> None:
    """Refuse signers for which no requests may be approved (the setting `approve_for`): a `ConfigError`.

    Those of Kubernetes make identities of the cluster itself. Others than ours do not mark certificates of `simulated`
    enclaves, so their names must.
    """
    for name in names:
        if not SIGNER_NAME.fullmatch(name) or name == SIGNER:
            raise ConfigError(
                f"{name!r} is no signer of certificate requests",
                setting="approve_for",
                advice="Name another signer than ours, as clusterissuers.cert-manager.io/NAME.",
            )
        if _KUBERNETES.fullmatch(name):
            raise ConfigError(
                f"{name} is a signer of Kubernetes itself: its certificates are trusted by the cluster",
                setting="approve_for",
                advice="Name one that signs for attested pods alone, as clusterissuers.cert-manager.io/NAME.",
            )
        if simulated and "simulated" not in name:
            raise ConfigError(
                f"{name} would sign for simulated enclaves, and its certificates do not say so",
                setting="approve_for",
                advice="Use a signer for simulated enclaves alone, with the word simulated in its name.",
            )


def name_for(nonce: bytes) -> str:
    """The name of the request with evidence over this nonce, by the 16 random bytes with which it begins."""
    return f"confcom-{nonce[:16].hex()}"


def nonce_message(nonce: str, seconds: float) -> str:
    """The message that gives a nonce (base64url) to the requester."""
    return f"nonce={nonce} Repeat the request within {seconds:.0f} s, with evidence for its key and this nonce."


def nonce_of(message: str) -> str:
    """The nonce in such a message; `FormatError` if there is none."""
    found = _NONCE.search(message)
    if found is None:
        raise _error(f"has no nonce: {message[:120]!r}", "status.conditions.message")
    return found[1]


def condition(kind: str, reason: str, message: str) -> dict[str, str]:
    """A condition of a request."""
    return {"type": kind, "status": "True", "reason": reason, "message": message[:MAX_MESSAGE]}


def _error(message: str, field: str) -> FormatError:
    return FormatError(message, structure=_STRUCTURE, field=field, advice="Correct the request, and make another one.")
