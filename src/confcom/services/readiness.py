"""Whether this helper is ready, as its self-test says, and the pages that show it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from confcom.services.aesm_front import AesmFront
from confcom.services.quote_helper_metrics import QuoteHelperMetrics
from confcom.services.self_test import SelfTest, SelfTestResult
from confcom.services.status_page import Handler, Page

FRESH = 5.0
"""Seconds for which a self-test counts as the present state."""
LOOK = 0.5
"""Seconds between two looks at whether a self-test is due."""


class Readiness:
    """Runs self-tests, one at a time, and remembers the last."""

    def __init__(self, self_test: SelfTest, front: AesmFront, metrics: QuoteHelperMetrics) -> None:
        self._self_test = self_test
        self._front = front
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._place: Path | None = None
        self._not_serving = "starting: the attestation key is being made, or the proof goes on"
        self._last: SelfTestResult | None = None
        self._tested = 0.0
        self._had_quote = False
        self._lost_devices = ""
        self._regularly: asyncio.Task[None] | None = None

    def serves_at(self, path: Path | None) -> None:
        """Say where clients find us; None: not any more, a successor serves."""
        self._place = path
        self._last = None
        self._not_serving = "replaced: another helper serves"

    def close(self) -> None:
        """End the regular tests."""
        if self._regularly is not None:
            self._regularly.cancel()

    async def test(self, path: Path, *, clients: bool = False) -> SelfTestResult:
        """Run a self-test now, in a thread."""
        async with self._lock:
            return await self._test(path, clients=clients)

    async def current(self) -> SelfTestResult | None:
        """The state of the last seconds; None while this helper does not serve."""
        async with self._lock:
            if self._place is None:
                return None
            if self._last is None or self._loop.time() - self._tested > FRESH:
                return await self._test(self._place)
            return self._last

    def test_regularly(self, interval: float) -> None:
        """From now on make a self-test every `interval` seconds, and one as soon as a client has had a quote."""
        if self._regularly is None:
            self._regularly = asyncio.create_task(self._test_regularly(interval), name="self-test")

    def pages(self) -> dict[str, Handler]:
        """/healthz, /readyz and /metrics."""
        return {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._show_metrics}

    async def _test(self, path: Path, *, clients: bool = False) -> SelfTestResult:
        had_quote = self._front.last_quote is not None
        run: Callable[[], SelfTestResult] = lambda: self._self_test.run(  # noqa: E731
            path, last=self._front.last_quote, clients=clients
        )
        result = await asyncio.to_thread(run)
        self._last, self._tested, self._had_quote = result, self._loop.time(), had_quote
        self._metrics.self_tested(result)
        return result

    async def _test_regularly(self, interval: float) -> None:
        while True:
            await asyncio.sleep(LOOK)
            async with self._lock:
                if self._place is not None and self._is_due(interval):
                    await self._test(self._place)

    def _is_due(self, interval: float) -> bool:
        if self._last is None:
            return True
        since = self._loop.time() - self._tested
        has_quote = self._front.last_quote is not None
        return since >= (interval if self._last.ok else min(interval, FRESH)) or (has_quote and not self._had_quote)

    async def _healthz(self) -> Page:
        """Show that the loop turns, and ask for another container when this one's devices have no driver any more."""
        lost = await asyncio.to_thread(self._self_test.lost_devices)
        if lost != self._lost_devices:
            outcome = "lost" if lost else "returned"
            structlog.get_logger().warning("aesm.devices", outcome=outcome, reason=lost or self._lost_devices)
            self._lost_devices = lost
        return Page(503, f"{lost}\n".encode()) if lost else Page(200, b"ok\n")

    async def _readyz(self) -> Page:
        result = await self.current()
        if result is None:
            return _json(503, {"ready": False, "reason": self._not_serving, "checks": []})
        checks = [
            {"id": check.id, "ok": check.ok, "expected": check.expected, "found": check.found, "advice": check.advice}
            for check in result.checks
        ]
        status = 200 if result.ok else 503
        return _json(status, {"ready": result.ok, "reason": result.failures(), "checks": checks})

    async def _show_metrics(self) -> Page:
        return Page(200, generate_latest(self._metrics.registry), CONTENT_TYPE_LATEST)


def _json(status: int, body: object) -> Page:
    return Page(status, msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n", "application/json")
