"""What the admission webhook reads and writes in a cluster: its Secret, and whom two configurations let it be."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import NamedTuple

from confcom.cluster.objects import ClusterObjects, Object, Ref
from confcom.errors import ClusterError

FIELD_MANAGER = "confcom-webhook"
ADMISSION = "admissionregistration.k8s.io/v1"
KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
CLIENT_LIFETIME = 300.0
"""Seconds after which credentials are read anew: a service account's token is replaced every hour."""


class SecretState(NamedTuple):
    """A Secret as it was read; `version` is what a write is conditional on, None where there is no Secret."""

    version: str | None
    data: Mapping[str, bytes]


class WebhookObjects:
    """One webhook's objects. Failures are `ClusterError`; a write that came too late is refused with status 409."""

    def __init__(self, *, namespace: str, secret: str, configuration: str, kubeconfig: str | None) -> None:
        self._secret = Ref("v1", "Secret", namespace, secret)
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._cluster: ClusterObjects | None = None
        self._opened = 0.0

    async def close(self) -> None:
        """End the connections."""
        if self._cluster is not None:
            await self._cluster.__aexit__()
            self._cluster = None

    async def secret(self) -> SecretState:
        """The Secret as it is now."""
        found = await (await self._open()).get(self._secret)
        if found is None:
            return SecretState(None, {})
        data = found.get("data") or {}
        return SecretState(found["metadata"]["resourceVersion"], {name: _decoded(data[name]) for name in data})

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        """Make this the Secret's data, unless somebody has written since `version` was read."""
        metadata = {"namespace": self._secret.namespace, "name": self._secret.name}
        if version is not None:
            metadata["resourceVersion"] = version
        encoded = {name: b64encode(value).decode() for name, value in data.items()}
        wanted = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}
        await (await self._open()).apply(wanted)

    async def trusted(self, kind: str) -> Mapping[str, bytes] | None:
        """The CA bundle in each entry of a configuration, by name; None where there is no such configuration."""
        found = await (await self._open()).get(Ref(ADMISSION, kind, "", self._configuration))
        if found is None:
            return None
        return {entry["name"]: _decoded(entry["clientConfig"].get("caBundle") or "") for entry in found["webhooks"]}

    async def trust(self, kind: str, names: list[str], bundle: bytes) -> None:
        """Put the CA bundle into entries of a configuration, and nothing else."""
        client: Object = {"caBundle": b64encode(bundle).decode()}
        wanted = {
            "apiVersion": ADMISSION,
            "kind": kind,
            "metadata": {"name": self._configuration},
            "webhooks": [{"name": name, "clientConfig": client} for name in names],
        }
        await (await self._open()).apply(wanted)

    async def _open(self) -> ClusterObjects:
        now = time.monotonic()
        if self._cluster is not None and now - self._opened > CLIENT_LIFETIME:
            await self.close()
        if self._cluster is None:
            self._cluster, self._opened = ClusterObjects.open(self._kubeconfig, None, FIELD_MANAGER), now
        return self._cluster


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text)
    except (Base64Error, ValueError) as error:
        raise ClusterError("the Kubernetes API sent bytes that are not in base64") from error
