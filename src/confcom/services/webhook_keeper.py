"""Keeps the webhook trusted: one certificate for all replicas, known to the API server before it is served.

The replicas agree through the Secret: each write is conditional on what was read, and whoever comes too late reads
again. Nothing here is needed to answer a review, so a Kubernetes API that is away stops nothing but the next rotation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from confcom.cluster.webhook_objects import KINDS, WebhookObjects
from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.pki.serving_pair import ServingPair
from confcom.services.tls import HeldTls
from confcom.services.webhook_metrics import WebhookMetrics
from confcom.services.webhook_rotation import Holding, RotationPolicy, next_holding

CONFLICT = 409
ATTEMPTS = 5
"""Writes of the Secret at one look, of which all but the last came too late."""


class CertificateKeeper:
    """What is served, and whether the API server trusts it."""

    def __init__(
        self,
        objects: WebhookObjects,
        policy: RotationPolicy,
        metrics: WebhookMetrics,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self.not_ready = "no certificate yet"
        """Why the API server would not trust us; empty if it does."""
        self.served: ServingPair | None = None
        """What new connections are met with."""
        self._objects = objects
        self._policy = policy
        self._metrics = metrics
        self._clock = clock
        self._held = Holding()
        self._tls: HeldTls | None = None
        self._first: asyncio.Future[HeldTls] = asyncio.get_running_loop().create_future()
        self._log = structlog.get_logger()

    async def run(self, every: float) -> None:
        """Look for ever. Credentials that cannot be used end it, but only before there is something to serve."""
        said = ""
        while True:
            try:
                await self.look()
                said = ""
            except (ClusterError, ConfigError) as error:
                if isinstance(error, ConfigError) and self.served is None:
                    raise
                self._metrics.failures.labels("certificate").inc()
                if self.served is None or self.served.expires <= self._clock():
                    self._not_ready(error.message)
                if str(error) != said:
                    self._log.warning("webhook.certificate", outcome="waits", reason=str(error), advice=error.advice())
                    said = str(error)
            await asyncio.sleep(every)

    async def first(self) -> HeldTls:
        """Wait for the first certificate."""
        return await asyncio.shield(self._first)

    async def look(self) -> None:
        """Bring Secret, configurations and what is served in step, once."""
        in_force = await self._bundle_in_force(self._held)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._held = await self._agree(bundle_in_force=in_force)
                break
            except ClusterRefused as error:
                if error.status != CONFLICT or attempt == ATTEMPTS:
                    raise
        self._serve()
        await self._tell()

    async def _agree(self, *, bundle_in_force: bool) -> Holding:
        """What the Secret holds, after what was due has been written to it."""
        found = await self._objects.secret()
        held = Holding.parse(found.data)
        if held.current is None and self._held.current is not None:
            held = self._held  # somebody emptied it: what is served already is the best that can be put back
        # What we saw in force was our former bundle; a newer one of another replica has to be seen first.
        known = bundle_in_force and held.trusted == self._held.trusted
        wanted = next_holding(held, self._policy, now=self._clock(), bundle_in_force=known)
        if wanted.data() != dict(found.data):
            await self._objects.write_secret(wanted.data(), version=found.version)
            self._log.info("webhook.secret", outcome="written", trusted=len(wanted.trusted),
                           prepared=wanted.prepared is not None)  # fmt: skip
        return wanted

    def _serve(self) -> None:
        pair = self._held.current
        if pair is None or pair == self.served:
            return
        if self._tls is None:
            self._tls = HeldTls(pair.certificate, pair.key)
            self._first.set_result(self._tls)
        else:
            self._tls.use(pair.certificate, pair.key)
        self.served = pair
        self._metrics.rotations.inc()
        self._metrics.expires(pair.expires)
        self._log.info("webhook.certificate", outcome="served", expires=pair.expires.isoformat())

    async def _tell(self) -> None:
        """Have both configurations trust what is held; ready is who is trusted by both."""
        for kind in KINDS:
            found = await self._objects.trusted(kind)
            if found is None:
                self._not_ready(f"there is no {kind}: `confcom addon update` makes it")
                return
            wrong = sorted(name for name, bundle in found.items() if bundle != self._held.bundle)
            if wrong:
                await self._objects.trust(kind, wrong, self._held.bundle)
                self._metrics.told.labels(kind).inc()
                self._log.info("webhook.configuration", outcome="told", kind=kind, entries=wrong)
        self._not_ready("")

    async def _bundle_in_force(self, held: Holding) -> bool:
        if held.prepared is None:
            return False
        found = [await self._objects.trusted(kind) for kind in KINDS]
        return all(bundles is not None and set(bundles.values()) == {held.bundle} for bundles in found)

    def _not_ready(self, reason: str) -> None:
        if reason != self.not_ready:
            self._log.info("webhook.ready", ready=not reason, reason=reason)
        self.not_ready = reason
        self._metrics.ready.set(not reason)
