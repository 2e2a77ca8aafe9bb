"""The quote helper: serves quotes to every enclave of a node over the AESM socket.

Owns the life cycle: make the attestation key, pass the self-test when there is a predecessor, take the path, serve, and
leave on a signal or when a successor has taken the path. Connections are in `connections`, answers in `broker`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog

from confcom.errors import CollateralUnavailable, ConfcomError, PlatformBusy, PlatformUnavailable
from confcom.platforms.interface import Platform
from confcom.protocols.aesm import MAX_REQUEST
from confcom.protocols.custom_metrics import EXPORTERS
from confcom.services.quote_helper.broker import AesmBroker
from confcom.services.quote_helper.connection import RequestEvent
from confcom.services.quote_helper.connections import AesmFront
from confcom.services.quote_helper.helper_quoting import AheadQuoting, QuickQuoting
from confcom.services.quote_helper.self_test import SelfTest, SelfTestKit, SelfTestResult
from confcom.services.quote_helper.telemetry import QuoteHelperMetrics, RequestLog, log_request
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.listener import UnixListener, is_served
from confcom.services.runtime.process import background, keep_running
from confcom.services.runtime.status_page import Handler, StatusPage, component_registry, metrics_of, serve_issued_page

Signer = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{64}$")]
"""An MRSIGNER in hex."""


class QuoteHelperConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the quote helper; the defaults are those for production."""

    socket: Annotated[str, msgspec.Meta(pattern="[^/.]")] = "/var/run/aesmd/aesm.socket"
    """Where clients connect: Intel's and Fortanix's know no other path."""
    platform: Literal["auto", "intel", "simulated"] = "auto"
    """Who makes the quotes."""
    simulated_machine: str | None = None
    """File of the simulated machine; the simulated platform needs one."""
    replace: bool = False
    """Take the path over from a service that still answers there, once this one has proved itself."""
    when_replaced: Literal["leave", "wait"] = "leave"
    """What to do when a successor has taken the path: end, or wait for the signal and come back if it dies.

    `wait` is for supervisors that start again whatever ends, as the kubelet does."""
    when_killed: Literal["end", "restart"] = "end"
    """What to do when a signal kills the serving process (SIGKILL, a crash): end, or start it again at once.

    `restart` is for containers, where the kubelet would wait longer each time."""
    backlog: Annotated[int, msgspec.Meta(ge=128, le=65535)] = 256
    """Connections that the kernel holds for us; beyond them clients wait, or fail if they do not wait. In a flood
    beside other peers it is 8, so that good clients take turns with the flood instead of waiting behind it."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; fewer when the process may not open as many files."""
    max_connections_per_peer: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections of one pod (or user) at a time; requests on further ones get BUSY."""
    peer_rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Requests per second that one pod (or user) may make of the platform; further ones get BUSY. 0: no limit,
    because peers take turns anyway."""
    peer_burst: Annotated[int, msgspec.Meta(ge=1)] = 100
    """Requests that a peer may make at once before its rate counts."""
    expected_signers: tuple[Signer, ...] = ()
    """MRSIGNERs of the enclaves that are expected here. Others get quotes too, and are counted in a metric of their
    own. Empty: any."""
    host_root: str = "/"
    """Where the host's `proc` is, to learn the pod of a process."""
    fd_reserve: Annotated[int, msgspec.Meta(ge=16)] = 64
    """File descriptors that connections leave to the platform and its collateral."""
    max_request: Annotated[int, msgspec.Meta(ge=4096, le=131072)] = MAX_REQUEST
    """Longest request in bytes; one that announces more is closed at once."""
    read_timeout: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Seconds from the connection to its whole request, and again for the answer to be taken."""
    answer_timeout: Annotated[float, msgspec.Meta(gt=0, lt=14)] = 13.0
    """Seconds for the platform; then the client gets BUSY, before its own 15 s are over."""
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 512
    """Requests that may wait for the platform. Beyond them, the peer with most waiting requests gets BUSY."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=0)] = 14.0
    """Seconds that requests under way get when the helper stops."""
    http: str = ""
    """Where /healthz, /readyz and /metrics are: HOST:PORT, [ADDRESS]:PORT or unix:PATH. Empty: nowhere."""
    https: str = ""
    """Where /metrics is over TLS too, for the metrics API. Empty: nowhere."""
    https_ca: str = "/etc/confcom/exporters-ca"
    """Folder with tls.crt and tls.key of the CA that issues its certificate."""
    collateral: str | None = None
    """Folder or collateral.json that verifies this platform's quotes, read again for every self-test; or the URL of a
    collateral service, asked once an hour. The simulated platform needs none."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of that service may be of. By default public ones."""
    trust_root: str | None = None
    """PEM file with the root that those quotes must chain to. By default Intel's, or the simulated world's own."""
    self_test_interval: Annotated[float, msgspec.Meta(ge=1)] = 60.0
    """Seconds between self-tests, while `http` is on or where the QE has to report on itself for them; /readyz asks for
    another when the last is older than 5 s."""
    proof_timeout: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """Seconds in which a helper that is to take over must have proved itself."""


FRESH = 5.0
"""Seconds for which a self-test counts as the present state."""
LOOK = 0.5
"""Seconds between two looks at whether a self-test is due."""


class Readiness:
    """Runs self-tests, one at a time, keeps the last result, and serves the status pages from it."""

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
        """Set the path at which clients reach this helper; None: a successor serves."""
        self._place = path
        self._last = None
        self._metrics.state = "replaced" if path is None else "serving"
        self._not_serving = "replaced: another helper serves"

    def close(self) -> None:
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

    @property
    def ready(self) -> bool:
        """Whether this helper serves and its last self-test succeeded."""
        return self._place is not None and self._last is not None and self._last.ok

    def test_regularly(self, interval: float) -> None:
        """From now on make a self-test every `interval` seconds, and one as soon as a client has had a quote."""
        if self._regularly is None:
            self._regularly = asyncio.create_task(keep_running("self-test", partial(self._test_regularly, interval)))

    def pages(self) -> dict[str, Handler]:
        return {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": metrics_of(self._metrics.registry)}

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
        """Answers while the event loop runs; 503 when the devices are lost, so that the container is restarted."""
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


def _json(status: int, body: object) -> Page:
    return Page(status, msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n", "application/json")


__all__ = ["QuoteHelperConfig", "serve"]

WARM_UP_RETRY = (1.0, 5.0, 30.0)
"""Seconds between attempts to make the attestation key; the last one repeats."""
WATCH = 0.25
"""Seconds between two looks at whether the path still leads to us."""
RETURN_AFTER = 3
"""Failed connections to the path in a row, before a helper that was replaced comes back."""


async def serve(
    platform: Platform,
    config: QuoteHelperConfig,
    *,
    stop: asyncio.Event,
    started: Callable[[], None] | None = None,
    observe: Callable[[RequestEvent], None] = log_request,
    log: RequestLog | None = None,
    quick: bool = False,
    restarted: bool = False,
    self_test: SelfTestKit | None = None,
) -> None:
    """Serve until `stop` is set or a successor has taken the path, then answer what is under way and return.

    `quick` is for a platform that takes microseconds: the event loop calls it, instead of a thread.
    A helper that was `restarted` does not take the path from another that has it meanwhile, and waits for its end.
    `started` is called once the socket stands at its path and the attestation key has been tried for the first time.
    `log` records every connection when it ends; without one, `observe` is called. When there is a
    predecessor (`replace`), the self-test must succeed before the path is taken: otherwise `PlatformUnavailable`.
    """
    async with AsyncExitStack() as resources:
        helper = _Helper(platform, config, stop, observe, log, self_test, quick=quick)
        resources.callback(helper.close)
        if config.http:
            page = StatusPage(config.http, helper.pages())
            await resources.enter_async_context(background("status-page", page.run))
        if config.https:
            own = {"/metrics": helper.pages()["/metrics"]}
            serve_own = partial(serve_issued_page, config.https, own, Path(config.https_ca), EXPORTERS["quote-helper"])
            await resources.enter_async_context(background("status-page-tls", serve_own))
        await helper.run(started or (lambda: None), restarted=restarted)


class _Helper:
    """One helper from its start to its end."""

    def __init__(
        self,
        platform: Platform,
        config: QuoteHelperConfig,
        stop: asyncio.Event,
        observe: Callable[[RequestEvent], None],
        log: RequestLog | None,
        self_test: SelfTestKit | None,
        *,
        quick: bool,
    ) -> None:
        self._config = config
        self._stop = stop
        self._path = Path(config.socket)
        self._tried = asyncio.Event()
        self._broker = AesmBroker(platform)
        self._metrics = QuoteHelperMetrics(component_registry("quote-helper"), observe, log)
        self._listener = UnixListener(self._path, backlog=config.backlog, replace=config.replace)
        self._front = AesmFront(self._broker, config, self._metrics)
        self._metrics.registry.register(self._front.enclaves)
        queue, deliver = self._front.queue, self._front.deliver
        self._quoting = (
            QuickQuoting(self._broker, queue, deliver, self._front.peers)
            if quick
            else AheadQuoting(self._broker, queue, deliver, answer_timeout=config.answer_timeout)
        )
        self._front.start(self._quoting)
        self._warming = asyncio.create_task(keep_running("warm-up", self._warm_up))
        self._readiness = Readiness(SelfTest(self_test, self._path, now=_now), self._front, self._metrics)
        if self_test is not None and self_test.enclave is None:
            # Not for the page alone: the QE's report on itself must be there when a successor needs it.
            self._readiness.test_regularly(config.self_test_interval)
        self._add_gauges()

    def pages(self) -> dict[str, Handler]:
        self._readiness.test_regularly(self._config.self_test_interval)
        return self._readiness.pages()

    def close(self) -> None:
        self._warming.cancel()
        self._readiness.close()
        self._quoting.close()
        self._front.close()
        self._listener.close()

    async def run(self, started: Callable[[], None], *, restarted: bool) -> None:
        """Take the path, after a self-test if it is served already, and serve."""
        self._front.listen(self._listener.socket)
        if restarted and is_served(self._path):
            self._readiness.serves_at(None)
            await self._is_needed_again()
        elif self._config.replace and is_served(self._path):
            # A predecessor keeps serving until our key is ready and we are proven.
            await _either(self._tried, self._stop)
            if not self._stop.is_set():
                await self._prove()
        if not self._stop.is_set():
            self._listener.take_path()
            # Without a predecessor, BUSY is a better answer than a refused connection.
            await _either(self._tried, self._stop)
        if not self._stop.is_set():
            self._readiness.serves_at(self._path)
            started()
            await self._serve()
        await self._retire(self._listener)

    def _add_gauges(self) -> None:
        front, quoting, readiness, show = self._front, self._quoting, self._readiness, self._metrics.reading
        show("ready", "1 while this helper serves and its last self-test succeeded.", lambda: readiness.ready)
        show("connections", "Connections that are open.", lambda: front.open)
        show("waiting", "Requests that wait for the platform.", lambda: len(front.queue))
        show("in_hand", "Requests that the platform works on.", lambda: quoting.in_hand)
        show("peers", "Pods and users with open connections.", lambda: len(front.peers))

    async def _warm_up(self) -> None:
        """Have the attestation key made, and try again until it is; `_tried` is set after the first attempt."""
        logger = structlog.get_logger()
        loop = asyncio.get_running_loop()
        for attempt in itertools.count():
            started = loop.time()
            try:
                await self._quoting.warm_up()
            except ConfcomError as error:
                logger.warning("aesm.warm_up", outcome="failed", error=error.code, reason=error.message)
            except Exception:  # a mistake in a platform must not end the attempts
                logger.exception("aesm.warm_up", outcome="failed")
            else:
                logger.info("aesm.warm_up", outcome="ready", duration_ms=round((loop.time() - started) * 1000, 3))
                break
            finally:
                self._tried.set()
            await asyncio.sleep(WARM_UP_RETRY[min(attempt, len(WARM_UP_RETRY) - 1)])

    async def _prove(self) -> None:
        """Run the self-test under the temporary name; failures that may pass are retried until the deadline."""
        logger = structlog.get_logger()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.proof_timeout
        while True:
            result = await self._readiness.test(self._listener.place, clients=True)
            if result.ok:
                logger.info("aesm.proof", outcome="proven", checks={check.id: check.found for check in result.checks})
                return
            passing = isinstance(result.error, CollateralUnavailable | PlatformBusy)
            if not passing or loop.time() >= deadline or self._stop.is_set():
                logger.error("aesm.proof", outcome="failed", reason=result.failures())
                raise PlatformUnavailable(
                    f"this helper does not take {self._path} over, because it could not prove itself: "
                    f"{result.failures()}",
                    advice="The helper that serves there goes on. "
                    + (result.error.advice() if result.error is not None else "Report this, and keep the old version."),
                )
            await asyncio.sleep(1)

    async def _serve(self) -> None:
        """Serve until `stop` is set, or until a successor keeps the path."""
        while await self._is_replaced():
            await self._retire(self._listener)
            self._readiness.serves_at(None)
            if self._config.when_replaced == "leave" or not await self._is_needed_again():
                return
            self._listener = self._stand_again()
            self._readiness.serves_at(self._path)

    async def _is_replaced(self) -> bool:
        """Wait until a successor has the path (True) or `stop` is set; a path that leads nowhere is taken again."""
        said = ""
        while not await self._stopped_within(WATCH):
            if self._listener.owns_path:
                continue
            if is_served(self._path):
                structlog.get_logger().info("aesm.replaced", socket=str(self._path))
                return True
            try:
                old, self._listener = self._listener, self._stand_again()
            except ConfcomError as error:
                if error.message != said:
                    structlog.get_logger().warning("aesm.path", outcome="lost", reason=error.message)
                said = error.message
            else:
                structlog.get_logger().warning("aesm.path", outcome="restored", reason="the socket had been removed")
                await self._retire(old)
        return False

    async def _is_needed_again(self) -> bool:
        """Wait until the successor has not answered for a while (True) or `stop` is set."""
        unanswered = 0
        while not await self._stopped_within(WATCH * 2):
            unanswered = 0 if is_served(self._path) else unanswered + 1
            if unanswered >= RETURN_AFTER:
                structlog.get_logger().warning("aesm.returned", reason="the successor does not answer any more")
                return True
        return False

    def _stand_again(self) -> UnixListener:
        listener = UnixListener(self._path, backlog=self._config.backlog, replace=True)
        self._front.listen(listener.socket)
        listener.take_path()
        return listener

    async def _retire(self, listener: UnixListener) -> None:
        if listener.socket.fileno() < 0:
            return
        listener.remove_path()
        await self._front.drain(listener.socket)
        listener.close()

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the daemon's own clock


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
