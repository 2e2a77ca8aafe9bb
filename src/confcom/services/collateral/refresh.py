"""Renewing what the collateral service holds, before it expires; one failure never keeps the rest from renewal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from confcom.collateral.documents import DocumentKey, DocumentKind, keys_for
from confcom.collateral.store.registrations import Place, Registration, State
from confcom.collateral.store.rows import StoredVersion
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, ConfcomError
from confcom.protocols.pcs import PckCaName, PckCertsRequest, Tee, Update
from confcom.services.collateral.cache import CollateralCache
from confcom.services.collateral.pck_certificates import PckCertificates
from confcom.services.runtime.process import Overloaded, wait_for

if TYPE_CHECKING:
    from confcom.services.collateral.collateral_service import CollateralMetrics, CollateralServiceConfig


@dataclass(frozen=True, slots=True)
class Need:
    """The documents that judge quotes of an FMSPC by a set. `firm`: it was configured, or a platform has it."""

    tee: Tee
    fmspc: bytes
    update: Update
    keys: tuple[DocumentKey, ...]
    firm: bool


STAGED: frozenset[Update] = frozenset({"standard", "early"})
"""Sets that are kept for every FMSPC that is configured or known, whether they are served or not: what they say of the
platforms is known before they are served."""


def needs_in(store: CollateralStore, configured: Sequence[tuple[Tee, bytes]], sets: Set[Update]) -> tuple[Need, ...]:
    """What the configured FMSPCs, those of known platforms and those in the store need of these sets (blocks)."""
    known, present = sorted(store.platforms.kinds()), store.document_keys()
    listed = {key.ca for key in present if key.ca is not None}
    kinds = {(tee, fmspc) for tee, fmspc, _ in known} | set(configured)
    firm: set[tuple[Tee, bytes, Update]] = {(*kind, update) for kind in kinds for update in sets}
    # Of other FMSPCs only what was asked for: Intel takes numbered sets off its service one day.
    asked: set[tuple[Tee, bytes, Update]] = {
        (key.tee or "sgx", key.fmspc or b"", key.update)
        for key in present
        if key.kind is DocumentKind.TCB_INFO and key.update is not None and key.update in sets
    }
    found = []
    for tee, fmspc, update in sorted(firm | asked, key=lambda entry: (entry[2] == "early", str(entry))):
        own: list[PckCaName] = [ca for of_tee, of, ca in known if (of_tee, of) == (tee, fmspc)]
        # An FMSPC alone does not determine the CA; servers have the platform CA.
        cas: Sequence[PckCaName] = own or sorted(listed) or ("platform",)
        found.append(Need(tee, fmspc, update, _keys(tee, fmspc, cas, update), (tee, fmspc, update) in firm))
    return tuple(found)


def _keys(tee: Tee, fmspc: bytes, cas: Iterable[PckCaName], update: Update) -> tuple[DocumentKey, ...]:
    return tuple(dict.fromkeys(key for ca in cas for key in keys_for(fmspc, ca, tee, update)))


_Job = tuple[object, Callable[[], Awaitable[bool]]]
"""What is asked for, and the call, which returns whether it was renewed."""

AT_A_TIME = 4
"""Requests to upstream of one round at a time; others remain for clients."""


LEADS = timedelta(minutes=2)
"""Time for which one replica refreshes for all; another takes over when it ended."""

GATHER = 0.5
"""Seconds to wait for more new entries of the store, before their further documents are fetched."""


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
        config: CollateralServiceConfig,
        metrics: CollateralMetrics,
        *,
        required: Sequence[tuple[Tee, bytes]],
        served: Set[Update],
    ) -> None:
        """`required` are FMSPCs to have everything for before the first request, `served` the sets of clients."""
        self._served = served
        self._cache = cache
        self._certificates = certificates
        self._registrations = cache.store.registrations
        self._config = config
        self._metrics = metrics
        self._required = tuple(required)
        self._tried: dict[object, datetime] = {}
        self._led = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> None:
        """Refresh what is due, for ever."""
        while True:
            try:
                if await self._leads():
                    await self.refresh_due()
            except ConfcomError as error:
                structlog.get_logger().warning("collateral.refresh", outcome="aborted", reason=error.message)
            except Exception:  # noqa: BLE001 - the next round must come, whatever failed in this one
                structlog.get_logger().exception("collateral.refresh", outcome="aborted")
            await self._pause()

    async def _leads(self) -> bool:
        """Whether this replica refreshes for all; the lease is prolonged."""
        now = self._cache.clock()
        self._led = now
        return await self._cache.read(lambda: self._cache.store.take_lease("refresh", now, LEADS))

    async def _pause(self) -> None:
        """Wait for the next round; it begins sooner when the store has grown."""
        self._cache.grown.clear()
        if await wait_for(self._cache.grown, self._config.refresh_look):
            await asyncio.sleep(GATHER)

    async def refresh_due(self) -> RefreshReport:
        now = self._cache.clock()
        versions = await self._cache.read(lambda: self._versions(now))
        documents = [key for key, version in versions.items() if self._due(key, version, now)]
        self._tried = {what: tried for what, tried in self._tried.items() if self._tried_lately(what, now)}
        report = await self._round(documents, self._certificates_due(now), now)
        if report.renewed or report.unchanged or report.failures:
            self._finished(report)
        return report

    async def refresh_documents(self) -> RefreshReport:
        now = self._cache.clock()
        versions = await self._cache.read(lambda: self._versions(now))
        self._cache.forget_failures()
        report = await self._round(list(versions), None, now)
        self._finished(report)
        return report

    async def refresh_certificates(self, fmspcs: Sequence[bytes] = ()) -> RefreshReport:
        """Refresh the PCK certificates of every platform, or of those of some FMSPCs, now."""
        self._cache.forget_failures()
        report = await self._round([], self._registered(fmspcs), self._cache.clock())
        self._finished(report)
        return report

    def _versions(self, now: datetime) -> dict[DocumentKey, StoredVersion | None]:
        store = self._cache.store
        needed = (key for need in needs_in(store, self._required, STAGED | self._served) for key in need.keys)
        found = dict.fromkeys((*store.document_keys(), *needed))
        return {key: store.in_force(key, at=now) for key in found}

    def _due(self, key: DocumentKey, version: StoredVersion | None, now: datetime) -> bool:
        if self._tried_lately(key, now):
            return False
        if version is None:
            return True
        if isinstance(key.update, int) and key.update not in self._served and version.expires < now:
            return False  # Intel renews a set while it serves it
        times = (sighting.seen for sighting in version.sightings)
        seen = max((time for time in times if time <= now), default=version.facts.issue_date)
        soon = version.expires - now <= timedelta(seconds=self._config.refresh_before)
        return soon or now - seen >= timedelta(seconds=self._config.refresh_every)

    async def _certificates_due(self, now: datetime) -> AsyncIterator[Registration]:
        every = timedelta(seconds=self._config.refresh_every)
        limits: dict[State, datetime] = {"cached": now - every, "waiting": now}
        for state, until in limits.items():
            pages = self._registrations.pages_due(state, until=until, ahead=now + every)
            while page := await self._cache.read(lambda pages=pages: next(pages, ())):  # type: ignore[misc]
                for entry in page:
                    if not self._tried_lately(_name(entry), now):
                        yield entry

    async def _registered(self, fmspcs: Sequence[bytes]) -> AsyncIterator[Registration]:
        after: Place | None = None
        while page := await self._cache.read(
            lambda after=after: self._registrations.page("cached", fmspcs=fmspcs, after=after)  # type: ignore[misc]
        ):
            for entry in page:
                yield entry
            after = page[-1].place

    def _tried_lately(self, what: object, now: datetime) -> bool:
        tried = self._tried.get(what)
        # A time later than now is from before the clock was set back.
        return tried is not None and timedelta() <= now - tried < timedelta(seconds=self._config.refresh_retry)

    async def _round(
        self, documents: Sequence[DocumentKey], certificates: AsyncIterator[Registration] | None, now: datetime
    ) -> RefreshReport:
        report = RefreshReport()
        jobs: list[_Job] = [(key, partial(self._document, key)) for key in documents]
        for start in range(0, len(jobs), AT_A_TIME):
            await self._attempt_all(jobs[start : start + AT_A_TIME], report, now)
        if certificates is not None:
            jobs = []
            async for entry in certificates:
                jobs.append((_name(entry), partial(self._certificate, entry)))
                if len(jobs) == AT_A_TIME:
                    await self._attempt_all(jobs, report, now)
                    jobs = []
            await self._attempt_all(jobs, report, now)
        return report

    async def _attempt_all(self, jobs: Sequence[_Job], report: RefreshReport, now: datetime) -> None:
        if self._cache.clock() - self._led > LEADS / 4:
            await self._leads()
        for what, _ in jobs:
            self._tried[what] = now
        await asyncio.gather(*(self._attempt(str(what), call, report) for what, call in jobs))

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
            if key.update is None or key.update in self._served:
                raise
            return False  # Intel takes old sets off its service, and other sources have no early ones
        return before is None or before.document.digest() != after.document.digest()

    async def _certificate(self, entry: Registration) -> bool:
        request = entry.request
        before = await self._cache.read(
            lambda: self._cache.store.platforms.pck_certificates(request.qe_id or b"", request.pce_id)
        )
        if isinstance(request, PckCertsRequest):
            after = await self._certificates.fetch_all(request, asked=False)
        else:
            after = (await self._certificates.fetch(request, trusted=entry.state == "waiting", asked=False)).answer
        return after.certificate not in {answer.certificate for answer in before}

    def _finished(self, report: RefreshReport) -> None:
        self._metrics.last_refresh = self._cache.clock().timestamp()
        structlog.get_logger().info(
            "collateral.refresh", renewed=report.renewed, unchanged=report.unchanged, failed=len(report.failures)
        )


def _name(entry: Registration) -> str:
    request = entry.request
    qe_id = (request.qe_id or b"").hex()
    if isinstance(request, PckCertsRequest):
        return f"PCK certificates of QE_ID {qe_id}"
    return f"PCK certificate of QE_ID {qe_id} at CPUSVN {request.cpu_svn.hex()}"
