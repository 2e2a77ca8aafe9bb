"""A server's Secret, which its replicas share, and the ConfigMap with its authorities. Writes are conditional."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import NamedTuple

from confcom.cluster.objects import ClusterObjects, Ref
from confcom.errors import ClusterError

CLIENT_LIFETIME = 300.0
"""Seconds until credentials are read again: a service account's token is replaced every hour."""


class SecretState(NamedTuple):
    """A Secret's data, and its resourceVersion for a conditional write; None if there is no Secret."""

    version: str | None
    data: Mapping[str, bytes]


class PublishedCa:
    """One server's Secret, and the ConfigMap where clients read its authorities under `key`, PEM after PEM.

    Failures are `ClusterError`; a conditional write that came too late is `ClusterRefused` with status 409.
    `manager` is the field manager of all writes.
    """

    def __init__(
        self, *, namespace: str, secret: str, config_map: str, key: str, kubeconfig: str | None, manager: str
    ) -> None:
        self._secret = Ref("v1", "Secret", namespace, secret)
        self._config_map = Ref("v1", "ConfigMap", namespace, config_map)
        self._key = key
        self._kubeconfig = kubeconfig
        self._manager = manager
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
        return SecretState(found["metadata"]["resourceVersion"], {name: decoded(data[name]) for name in data})

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        """Write the Secret's data; refused with 409 if it has changed since `version`."""
        metadata = {"namespace": self._secret.namespace, "name": self._secret.name}
        if version is not None:
            metadata["resourceVersion"] = version
        encoded = {name: b64encode(value).decode() for name, value in data.items()}
        wanted = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}
        await (await self._open()).apply(wanted)

    async def published(self) -> bytes | None:
        """The authorities that the ConfigMap publishes; None if there is no ConfigMap."""
        found = await (await self._open()).get(self._config_map)
        return None if found is None else (found.get("data") or {}).get(self._key, "").encode()

    async def publish(self, bundle: bytes) -> None:
        """Publish the authorities."""
        metadata = {"namespace": self._config_map.namespace, "name": self._config_map.name}
        data = {self._key: bundle.decode("ascii")}
        await (await self._open()).apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    async def _open(self) -> ClusterObjects:
        now = time.monotonic()
        if self._cluster is not None and now - self._opened > CLIENT_LIFETIME:
            await self.close()
        if self._cluster is None:
            self._cluster, self._opened = ClusterObjects.open(self._kubeconfig, None, self._manager), now
        return self._cluster


def decoded(text: str) -> bytes:
    """Decode base64 of an object; `ClusterError` if it is none."""
    try:
        return b64decode(text)
    except (Base64Error, ValueError) as error:
        raise ClusterError("the Kubernetes API sent bytes that are not in base64") from error
