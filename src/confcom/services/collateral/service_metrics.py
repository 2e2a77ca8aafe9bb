"""Metrics of the collateral service, by name, on a registry that the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from confcom.collateral.documents import DocumentKey
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralError, ConfcomError, FormatError, VerificationError
from confcom.protocols.pcs import TcbSets
from confcom.services.runtime.certificates import CertificateMetrics
from confcom.services.runtime.status_page import Reading

PREFIX = "confcom_collateral_service"
SECONDS_TO_EXPIRY = f"{PREFIX}_seconds_to_expiry"
_BUCKETS = (0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 30.0)


class CollateralMetrics:
    """Everything that the service counts. `docs/reference/collateral-service.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            f"{PREFIX}_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.duration = Histogram(
            f"{PREFIX}_request_seconds",
            "Seconds from a request's head to its answer, for answers that were not in memory.",
            ["path"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.cache = Counter(
            f"{PREFIX}_cache",
            "Where answers came from: memory, store, upstream; stale when expired, missing when nowhere.",
            ["result"],
            registry=registry,
        )
        self.upstream_requests = Counter(
            f"{PREFIX}_upstream_requests", "Questions to the upstream source.", ["document"], registry=registry
        )
        self.upstream_errors = Counter(
            f"{PREFIX}_upstream_errors", "Questions that failed, by the error's code.", ["code"], registry=registry
        )
        self.refreshed = Counter(
            f"{PREFIX}_refresh",
            "Outcomes of refreshing one document or certificate: renewed, unchanged, failed.",
            ["outcome"],
            registry=registry,
        )
        self.fallbacks = Counter(
            f"{PREFIX}_pck_fallbacks",
            "PCK certificates chosen among old ones, because upstream gave none for the platform's raw TCB.",
            registry=registry,
        )
        self.platforms = Gauge(
            f"{PREFIX}_platforms",
            "Platforms by the set that clients of a group get: current, falls_behind (the early set makes them "
            "OutOfDate), out_of_date. The group is empty for clients without one.",
            ["tcb", "group"],
            registry=registry,
        )
        self._sets = Gauge(
            f"{PREFIX}_tcb_set", "1 for the set that clients of a group get.", ["group", "set"], registry=registry
        )
        self._lacking = Gauge(
            f"{PREFIX}_lacking",
            "Documents that clients of a group need for an FMSPC, and that are missing or have expired.",
            ["group", "tee", "fmspc"],
            registry=registry,
        )
        self.last_refresh: float | None = None
        """When the last round of refreshing ended; 0 before the first, None if there are no rounds."""
        self._read("last_refresh_timestamp_seconds", "When the last round of refreshing ended; 0: none has yet.",
                   lambda: self.last_refresh)  # fmt: skip
        self.certificate = CertificateMetrics(registry, PREFIX)
        self.ready = Gauge(f"{PREFIX}_ready", "1 when /readyz says ready, else 0.", registry=registry)
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

    def watch_store(self, store: CollateralStore) -> None:
        """Show how often the store could not be read or written."""
        self._read("store_failures", "Reads and writes of the store that failed.", lambda: store.failures, counter=True)

    def _read(self, name: str, text: str, read: Callable[[], float | None], *, counter: bool = False) -> None:
        self.registry.register(Reading(f"{PREFIX}_{name}", text, read, counter=counter))

    def watch_expiry(self, expiries: Callable[[], Iterable[tuple[DocumentKey, float]]]) -> None:
        """Compute the seconds to expiry at every scrape."""
        self.registry.register(_Expiry(expiries))


def _codes(kind: type[ConfcomError]) -> Iterator[str]:
    """The codes of an error and of all below it."""
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


class _Expiry(Collector):
    """Seconds until each stored document expires; negative when it has."""

    def __init__(self, expiries: Callable[[], Iterable[tuple[DocumentKey, float]]]) -> None:
        self._expiries = expiries

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One sample per document in the store."""
        family = GaugeMetricFamily(
            SECONDS_TO_EXPIRY,
            "Seconds until the document in force expires; negative when it has expired.",
            labels=["kind", "tee", "fmspc", "ca", "update"],
        )
        for key, seconds in self._expiries():
            update = "" if key.update is None else str(key.update)
            family.add_metric([key.kind.value, key.tee or "", (key.fmspc or b"").hex(), key.ca or "", update], seconds)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Its name alone, so that registering computes nothing."""
        yield GaugeMetricFamily(SECONDS_TO_EXPIRY, "")
