"""What the webhook's replicas share, in memory; a write that comes too late is refused as the API server does it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from confcom.cluster.served import SecretState
from confcom.errors import ClusterError, ClusterRefused

KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
ENTRIES = ("debug", "pods")


class WebhookStore:
    """As `WebhookObjects` has it; every call gives way to others once, as one over a network does."""

    places = KINDS

    def __init__(self) -> None:
        self.version = 1
        self.data: dict[str, bytes] = {}
        self.bundles: dict[str, dict[str, bytes]] = {kind: dict.fromkeys(ENTRIES, b"") for kind in KINDS}
        self.down = False
        self.conflicts = 0

    async def secret(self) -> SecretState:
        await self._way()
        return SecretState(str(self.version), dict(self.data))

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        await self._way()
        if version != str(self.version):
            self.conflicts += 1
            raise ClusterRefused("the object has been modified", status=409, reason="Conflict")
        self.version += 1
        self.data = dict(data)

    async def trusted(self, kind: str) -> Mapping[str, bytes] | None:
        await self._way()
        return dict(self.bundles[kind]) if kind in self.bundles else None

    async def trust(self, kind: str, names: list[str], bundle: bytes) -> None:
        await self._way()
        self.bundles[kind] |= dict.fromkeys(names, bundle)

    async def _way(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise ClusterError("the API server is away")
