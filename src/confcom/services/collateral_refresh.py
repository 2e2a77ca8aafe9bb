"""Renewing what the collateral service holds, before it expires; one failure never keeps the rest from renewal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from confcom.collateral.documents import DocumentKey
from confcom.collateral.registrations import Registration, Registrations
from confcom.collateral.store_rows import StoredVersion
from confcom.errors import CollateralNotFound, ConfcomError
from confcom.protocols.pcs import Tee
from confcom.services.collateral_cache import CollateralCache
from confcom.services.collateral_metrics import CollateralMetrics
from confcom.services.collateral_needs import needs_in
from confcom.services.collateral_pck import PckCertificates
from confcom.services.worker_threads import Overloaded

AT_A_TIME = 4
"""Questions of one round at a time; clients' questions find room beside them."""


GATHER = 0.5
"""Seconds for which things that come one after the other are awaited, before what belongs to them is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshPolicy:
    """When something is due; all in seconds."""

    every: float = 24 * 3600.0
    """Since upstream last gave it: Intel may publish a new one before the old one expires."""
    before_expiry: float = 7 * 24 * 3600.0
    """Within this time of its expiry, it is due at every retry."""
    retry: float = 600.0
    """Between two tries for the same thing."""
    look: float = 60.0
    """Between two looks at what is due."""


@dataclass(slots=True)
class RefreshReport:
    """What a round did."""

    renewed: int = 0
    unchanged: int = 0
    failures: list[tuple[str, ConfcomError]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For machines: counts, and each failure with its code and advice."""
        failures = [{"what": what} | error.as_dict() for what, error in self.failures]
        return {"renewed": self.renewed, "unchanged": self.unchanged, "failed": failures}


class Refresher:
    """Asks upstream again for what is in the store."""

    def __init__(
        self,
        cache: CollateralCache,
        certificates: PckCertificates,
        registrations: Registrations,
        *,
        policy: RefreshPolicy,
        metrics: CollateralMetrics,
        required: Sequence[tuple[Tee, bytes]] = (),
    ) -> None:
        """`required` are FMSPCs to have everything for, even if nobody asked for them yet."""
        self._cache = cache
        self._certificates = certificates
        self._registrations = registrations
        self._policy = policy
        self._metrics = metrics
        self._required = tuple(required)
        self._tried: dict[object, datetime] = {}

    async def run(self) -> None:
        """Look for ever at what is due, and refresh it."""
        while True:
            try:
                await self.refresh_due()
            except Exception:  # noqa: BLE001 - the next look must come, whatever was wrong with this one
                structlog.get_logger().exception("collateral.refresh", outcome="aborted")
            await self._pause()

    async def _pause(self) -> None:
        """Until the next look; sooner when something came, so that what belongs to it comes too."""
        self._cache.grown.clear()
        try:
            async with asyncio.timeout(self._policy.look):
                await self._cache.grown.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER)

    async def refresh_due(self) -> RefreshReport:
        """Refresh what is due now."""
        now = self._cache.clock()
        versions = await self._cache.read(lambda: self._versions(now))
        documents = [key for key, version in versions.items() if self._due(key, version, now)]
        registered = await self._cache.read(lambda: self._registrations.of_fmspcs(()))
        queued = await self._cache.read(lambda: self._registrations.in_state("waiting"))
        certificates = [entry for entry in (*registered, *queued) if self._certificate_due(entry, now)]
        report = await self._round(documents, certificates, now)
        if documents or certificates:
            self._finished(report)
        return report

    async def refresh_documents(self) -> RefreshReport:
        """Refresh every document now."""
        now = self._cache.clock()
        versions = await self._cache.read(lambda: self._versions(now))
        self._cache.forget_failures()
        report = await self._round(list(versions), [], now)
        self._finished(report)
        return report

    async def refresh_certificates(self, fmspcs: Sequence[bytes] = ()) -> RefreshReport:
        """Refresh the PCK certificates of every platform, or of those of some FMSPCs, now."""
        registered = await self._cache.read(lambda: self._registrations.of_fmspcs(fmspcs))
        self._cache.forget_failures()
        report = await self._round([], registered, self._cache.clock())
        self._finished(report)
        return report

    def _versions(self, now: datetime) -> dict[DocumentKey, StoredVersion | None]:
        store = self._cache.store
        needed = (key for need in needs_in(store, self._required) for key in need.keys)
        found = dict.fromkeys((*store.document_keys(), *needed))
        return {key: store.in_force(key, at=now) for key in found}

    def _due(self, key: DocumentKey, version: StoredVersion | None, now: datetime) -> bool:
        if self._tried_lately(key, now):
            return False
        if version is None:
            return True
        seen = max((sighting.last_seen for sighting in version.sightings), default=version.facts.issue_date)
        soon = version.expires - now <= timedelta(seconds=self._policy.before_expiry)
        return soon or now - seen >= timedelta(seconds=self._policy.every)

    def _certificate_due(self, entry: Registration, now: datetime) -> bool:
        if self._tried_lately(_name(entry), now):
            return False
        return entry.state == "waiting" or now - entry.since >= timedelta(seconds=self._policy.every)

    def _tried_lately(self, what: object, now: datetime) -> bool:
        tried = self._tried.get(what)
        return tried is not None and now - tried < timedelta(seconds=self._policy.retry)

    async def _round(
        self, documents: Sequence[DocumentKey], certificates: Sequence[Registration], now: datetime
    ) -> RefreshReport:
        report = RefreshReport()
        jobs: list[tuple[object, Callable[[], Awaitable[bool]]]] = []
        jobs += [(key, partial(self._document, key)) for key in documents]
        jobs += [(_name(entry), partial(self._certificate, entry)) for entry in certificates]
        for start in range(0, len(jobs), AT_A_TIME):
            batch = jobs[start : start + AT_A_TIME]
            for what, _ in batch:
                self._tried[what] = now
            await asyncio.gather(*(self._attempt(str(what), call, report) for what, call in batch))
        return report

    async def _attempt(self, what: str, call: Callable[[], Awaitable[bool]], report: RefreshReport) -> None:
        try:
            renewed = await call()
        except Overloaded:
            return  # clients keep upstream busy; the next look comes soon
        except ConfcomError as error:
            report.failures.append((what, error))
            self._metrics.refreshed.labels("failed").inc()
            structlog.get_logger().warning(
                "collateral.refreshed", outcome="failed", what=what, error=error.code, reason=error.message
            )
            return
        report.renewed += renewed
        report.unchanged += not renewed
        self._metrics.refreshed.labels("renewed" if renewed else "unchanged").inc()

    async def _document(self, key: DocumentKey) -> bool:
        before = await self._cache.read(lambda: self._cache.stored(key, self._cache.clock()))
        try:
            after = await self._cache.refresh(key)
        except CollateralNotFound:
            if isinstance(key.update, int) and before is not None:
                return False  # Intel takes old sets off its service; the store keeps them
            raise
        return before is None or before.document.digest() != after.document.digest()

    async def _certificate(self, entry: Registration) -> bool:
        request = entry.request
        before = await self._cache.read(
            lambda: self._cache.store.platforms.pck_certificates(request.qe_id or b"", request.pce_id)
        )
        after = await self._certificates.fetch(request, trusted=entry.state == "waiting")
        return after.certificate not in {answer.certificate for answer in before}

    def _finished(self, report: RefreshReport) -> None:
        self._metrics.last_refresh.set(self._cache.clock().timestamp())
        structlog.get_logger().info(
            "collateral.refresh", renewed=report.renewed, unchanged=report.unchanged, failed=len(report.failures)
        )


def _name(entry: Registration) -> str:
    request = entry.request
    return f"PCK certificate of QE_ID {(request.qe_id or b'').hex()} at CPUSVN {request.cpu_svn.hex()}"
