"""The CA of a cluster's webhook: made by the installer, kept in a Secret, and replaced before it ends.

The API server trusts a new CA before replicas have its key, and the one before until that has expired.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime, timedelta

from confcom.cluster.objects import ClusterObjects, Object, Ref
from confcom.manifests.objects import NAMESPACE, WEBHOOK
from confcom.manifests.webhook import CA_SECRET, WebhookCa
from confcom.pki.serving_pair import Authority, authorities_in, expiry_of
from confcom.protocols.admission_rules import CONFIGURATION

CA_REF = Ref("v1", "Secret", NAMESPACE, CA_SECRET)
CONFIGURATION_KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
CONFIGURATIONS = tuple(Ref("admissionregistration.k8s.io/v1", kind, "", CONFIGURATION) for kind in CONFIGURATION_KINDS)
COMMON_NAME = "confcom admission webhook"
LIFETIME = timedelta(days=3650)
RENEW = timedelta(days=365)
"""A CA that ends sooner is replaced, and stays trusted until then; one that ends later and is replaced does not."""
MAX_TRUSTED = 8
"""CAs that are trusted at a time; two, in the usual course of things."""


async def webhook_ca(cluster: ClusterObjects, now: datetime) -> WebhookCa:
    """The CA that the cluster has, or a new one where it has none that lasts."""
    secret = await cluster.get(CA_REF)
    configuration = await cluster.get(CONFIGURATIONS[0])
    entries = (configuration or {}).get("webhooks") or [{}]
    in_force = _decoded((entries[0].get("clientConfig") or {}).get("caBundle") or "")
    data = {name: _decoded(text) for name, text in ((secret or {}).get("data") or {}).items()}
    return next_ca(data, in_force, now)


def next_ca(data: Mapping[str, bytes], in_force: bytes, now: datetime) -> WebhookCa:
    """What the Secret with this `data` should hold, where the API server trusts `in_force`; pure but for keys."""
    present = Authority.parse(data.get("tls.crt", b""), data.get("tls.key", b""))
    trusted = authorities_in(data.get("ca.crt", b""))
    if present is None or present.expires - now <= RENEW:
        trusted = (*trusted, *authorities_in(in_force))
        present = new_authority(now)
    (own,) = authorities_in(present.certificate)
    ending = [one for one in trusted if one != own and _ends_soon(one, now)]
    bundle = b"".join(dict.fromkeys((own, *ending[: MAX_TRUSTED - 1])))
    return WebhookCa(present.certificate, present.key, bundle)


def new_authority(now: datetime) -> Authority:
    """A CA for the webhook's Service, and for nothing else."""
    service = f"{WEBHOOK.name}.{NAMESPACE}.svc"
    return Authority.make(COMMON_NAME, now=now, lifetime=LIFETIME, names=(service, f"{service}.cluster.local"))


def is_another(wanted: Object, present: Object | None) -> bool:
    """Whether the CA's Secret gets another CA than it has."""
    return present is None or (present.get("data") or {}).get("tls.crt") != wanted["data"]["tls.crt"]


def _ends_soon(certificate: bytes, now: datetime) -> bool:
    expires = expiry_of(certificate)
    return expires is not None and now < expires <= now + RENEW


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text)
    except (binascii.Error, ValueError):
        return b""
