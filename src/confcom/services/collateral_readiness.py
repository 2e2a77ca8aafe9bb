"""Health, readiness and metrics of the collateral service: which FMSPC lacks which fresh document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request

from confcom.collateral.clock import Dates, rfc3339
from confcom.collateral.documents import DocumentKey
from confcom.errors import ConfcomError
from confcom.protocols.pcs import HttpResponse, Tee
from confcom.services.collateral_answers import Answer, answer_of, json_answer
from confcom.services.collateral_cache import CollateralCache, SingleFlight
from confcom.services.collateral_http import Routes
from confcom.services.collateral_metrics import CollateralMetrics, seconds_between
from confcom.services.collateral_needs import Need, needs_in
from confcom.services.worker_threads import Overloaded

LOOK_AGAIN = timedelta(seconds=30)
"""After this time the store is looked through anew, even if nothing is known to have changed in it."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in the store, by the time when it expires, and what should be there."""

    expires: dict[DocumentKey, datetime]
    dates: Dates | None
    needs: tuple[Need, ...]
    seen: datetime
    generation: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A document that an FMSPC lacks, or has only expired."""

    tee: Tee
    fmspc: bytes
    key: DocumentKey
    expired: datetime | None

    def as_dict(self) -> dict[str, Any]:
        """For machines and people."""
        problem = "missing" if self.expired is None else f"expired at {rfc3339(self.expired)}"
        return {"fmspc": self.fmspc.hex(), "tee": self.tee, "document": str(self.key), "problem": problem}


class Readiness:
    """Looks at the store in the background of requests, and says what is lacking."""

    def __init__(
        self,
        cache: CollateralCache,
        metrics: CollateralMetrics,
        *,
        required: Sequence[tuple[Tee, bytes]] = (),
        hindrance: Callable[[], str] = lambda: "",
    ) -> None:
        """`required` are the FMSPCs to be ready for, besides those of the known platforms and those asked for.

        `hindrance` says what else keeps clients from being served; nothing does if it is empty.
        """
        self._hindrance = hindrance
        self._cache = cache
        self._metrics = metrics
        self._required = tuple(required)
        self._flight = SingleFlight()
        self._inventory: Inventory | None = None
        metrics.watch_expiry(self._seconds_to_expiry)

    def routes(self) -> Routes:
        """The paths of health, readiness and metrics."""
        return {
            "/healthz": {"GET": self.healthz},
            "/readyz": {"GET": self.readyz},
            "/metrics": {"GET": self.metrics},
        }

    async def healthz(self, request: Request) -> Answer:
        """The loop turns."""
        del request
        return json_answer({"status": "alive"})

    async def readyz(self, request: Request) -> Answer:
        """200 when every FMSPC has what its quotes are judged with, else 503 with what is lacking."""
        del request
        body = await self._state()
        return json_answer(body, status=200 if body["ready"] else 503)

    async def metrics(self, request: Request) -> Answer:
        """Everything that is counted, in Prometheus' text form."""
        del request
        self._metrics.ready.set((await self._state())["ready"])
        body = generate_latest(self._metrics.registry)
        return answer_of(HttpResponse(200, (("Content-Type", CONTENT_TYPE_LATEST),), body))

    async def _state(self) -> dict[str, Any]:
        """Whether the service is ready, and why not: what /readyz and the metric say."""
        try:
            inventory = await self._look()
        except (ConfcomError, Overloaded) as error:
            return {"ready": False, "reason": f"the store cannot be read: {error}"}
        gaps = self.gaps(inventory)
        reason = self._reason(inventory, gaps)
        state: dict[str, Any] = {"ready": not reason}
        if reason:
            state["reason"] = reason
        return state | {"documents": len(inventory.expires), "lacking": [gap.as_dict() for gap in gaps]}

    def _reason(self, inventory: Inventory, gaps: Sequence[Gap]) -> str:
        if reason := self._hindrance():
            return f"clients do not trust the certificate yet: {reason}"
        if self._cache.upstream is None and not inventory.expires:
            return "the store is empty, and this service is offline: import collateral"
        if inventory.dates is not None and (reason := inventory.dates.clock_problem(self._cache.clock())):
            return reason
        if gaps:
            lacking = sorted({f"{gap.fmspc.hex()} ({gap.tee})" for gap in gaps})
            return f"fresh collateral is lacking for FMSPC {', '.join(lacking)}"
        return ""

    def gaps(self, inventory: Inventory) -> list[Gap]:
        """What is lacking now, by FMSPC.

        What nobody asked for yet is lacking where a configured FMSPC or a known platform needs it, or nobody could be
        asked. Elsewhere only what has expired is.
        """
        now, offline = self._cache.clock(), self._cache.upstream is None
        return [
            Gap(need.tee, need.fmspc, key, expires)
            for need in inventory.needs
            for key, expires in ((key, inventory.expires.get(key)) for key in need.keys)
            if (expires is None and (need.firm or offline)) or (expires is not None and expires < now)
        ]

    async def _look(self) -> Inventory:
        known, now = self._inventory, self._cache.clock()
        if known is None or known.generation != self._cache.generation or now - known.seen > LOOK_AGAIN:
            known = self._inventory = await self._flight.run("inventory", self._take)
        return known

    async def _take(self) -> Inventory:
        now, generation, store = self._cache.clock(), self._cache.generation, self._cache.store

        def look() -> Inventory:
            found = ((key, store.in_force(key, at=now)) for key in store.document_keys())
            versions = {key: version for key, version in found if version is not None}
            expires = {key: version.expires for key, version in versions.items()}
            dates = Dates.of((version.facts.issue_date, version.expires) for version in versions.values())
            return Inventory(expires, dates, needs_in(store, self._required), now, generation)

        return await self._cache.read(look)

    def _seconds_to_expiry(self) -> Iterable[tuple[DocumentKey, float]]:
        if self._inventory is None:
            return []
        now = self._cache.clock()
        return [(key, seconds_between(now, expires)) for key, expires in self._inventory.expires.items()]
