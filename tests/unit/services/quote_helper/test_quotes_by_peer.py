"""Quotes are counted by peer for as long as the helper runs, however many pods come and go."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from confcom.services.quote_helper.connection import RequestEvent
from confcom.services.quote_helper.peers import OURSELVES
from confcom.services.quote_helper.telemetry import MAX_PEERS, OTHERS, QuoteHelperMetrics


class Counted:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._metrics = QuoteHelperMetrics(self._registry, lambda _: None)

    def quote(self, peer: str, number: int = 1) -> None:
        for _ in range(number):
            self._metrics.request(RequestEvent("GetQuoteEx", "answered", None, None, "", 0.1, 1, 0, 1, 1, peer, 0.0))

    def of(self, peer: str) -> float | None:
        return self._registry.get_sample_value("confcom_quote_helper_quotes_total", {"peer": peer})

    def all(self) -> dict[str, float]:
        (family,) = [one for one in self._registry.collect() if one.name == "confcom_quote_helper_quotes"]
        return {one.labels["peer"]: one.value for one in family.samples if one.name.endswith("_total")}


def test_pods_that_came_last_are_counted_apart_and_no_quote_is_lost() -> None:
    counted = Counted()
    counted.quote(OURSELVES)
    counted.quote("pod first", 3)
    counted.quote("pod busy")
    for number in range(2 * MAX_PEERS):
        counted.quote(f"pod {number}")
        counted.quote("pod busy")
    assert counted.of("pod busy") == 2 * MAX_PEERS + 1
    assert counted.of(f"pod {2 * MAX_PEERS - 1}") == 1
    assert counted.of("pod first") is None
    assert counted.of(OURSELVES) == 1
    assert len(counted.all()) == MAX_PEERS
    assert sum(counted.all().values()) == 1 + 3 + 1 + 4 * MAX_PEERS
    before = counted.of(OTHERS)
    counted.quote("pod first")  # it counts anew, and its former quotes stay where they are
    assert counted.of("pod first") == 1
    assert counted.of(OTHERS) == before + 1
