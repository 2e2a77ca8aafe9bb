"""Metrics of the collateral service, by name, on a registry that the caller brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry

from confcom.collateral.documents import DocumentKey
from confcom.errors import CollateralError, ConfcomError, FormatError, VerificationError
from confcom.protocols.pcs import TcbSets
from confcom.services.runtime.certificates import CertificateMetrics
from confcom.services.runtime.status_page import Metrics

PREFIX = "confcom_collateral_service"
_BUCKETS = (0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 30.0)


class CollateralMetrics(Metrics):
    """Everything that the service counts. `docs/reference/collateral-service.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        gauge, counter = self.gauge, self.counter
        self.requests = counter("requests", "Requests answered, by path and status.", "path", "status")
        duration = "Seconds from a request's head to its answer, for answers that were not in memory."
        self.duration = self.seconds("request_seconds", duration, _BUCKETS, "path")
        came_from = "Where answers came from: memory, store, upstream; stale when expired, missing when nowhere."
        self.cache = counter("cache", came_from, "result")
        self.upstream_requests = counter("upstream_requests", "Questions to the upstream source.", "document")
        self.upstream_errors = counter("upstream_errors", "Questions that failed, by the error's code.", "code")
        outcomes = "Outcomes of refreshing one document or certificate: renewed, unchanged, failed."
        self.refreshed = counter("refresh", outcomes, "outcome")
        chosen = "PCK certificates chosen among old ones, because upstream gave none for the platform's raw TCB."
        self.fallbacks = counter("pck_fallbacks", chosen)
        self.platforms = gauge(
            "platforms",
            "Platforms by the set that clients of a group get: current, falls_behind (the early set makes them "
            "OutOfDate), out_of_date. The group is empty for clients without one.",
            "tcb",
            "group",
        )
        self._sets = gauge("tcb_set", "1 for the set that clients of a group get.", "group", "set")
        lacking = "Documents that clients of a group need for an FMSPC, and that are missing or have expired."
        self._lacking = gauge("lacking", lacking, "group", "tee", "fmspc")
        left = "Seconds until the document in force expires; negative when it has expired."
        self._expiry = gauge("seconds_to_expiry", left, "kind", "tee", "fmspc", "ca", "update")
        self.last_refresh: float | None = None
        """When the last round of refreshing ended; 0 before the first, None if there are no rounds."""
        ended = "When the last round of refreshing ended; 0: none has yet."
        self.reading("last_refresh_timestamp_seconds", ended, lambda: self.last_refresh)
        self.certificate = CertificateMetrics(registry, PREFIX)
        self.ready = gauge("ready", "1 when /readyz says ready, else 0.")
        # Beforehand, so that a rate has a beginning.
        for result in ("memory", "store", "upstream", "stale", "missing"):
            self.cache.labels(result)
        for outcome in ("renewed", "unchanged", "failed"):
            self.refreshed.labels(outcome)
        for kind in (CollateralError, FormatError, VerificationError):
            for code in _codes(kind):
                self.upstream_errors.labels(code)

    def show_sets(self, sets: TcbSets) -> None:
        """Show which set clients get."""
        for group, update in sets.by_group.items():
            self._sets.labels(group, str(update)).set(1)

    def show_fleet(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Show the number of platforms by group and state."""
        for (group, tcb), count in counts.items():
            self.platforms.labels(tcb, group).set(count)

    def show_lacking(self, documents: Iterable[tuple[str, str, str]]) -> None:
        """Show the documents that are lacking, by group, TEE and FMSPC."""
        self._lacking.clear()
        for group, tee, fmspc in documents:
            self._lacking.labels(group, tee, fmspc).inc()

    def show_expiry(self, documents: Iterable[tuple[DocumentKey, float]]) -> None:
        """Show the seconds to the expiry of each document in the store."""
        self._expiry.clear()
        for key, seconds in documents:
            update = "" if key.update is None else str(key.update)
            self._expiry.labels(key.kind, key.tee or "", (key.fmspc or b"").hex(), key.ca or "", update).set(seconds)


def _codes(kind: type[ConfcomError]) -> Iterator[str]:
    """The codes of an error and of all below it."""
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)
