"""The store and the upstream source behind the collateral service: one request to upstream per missing document.

Nothing here knows HTTP. Answers of upstream are verified by the store before they are kept or served.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from confcom.collateral.documents import Document, DocumentKey, DocumentKind, verify_document
from confcom.collateral.sources import source_name
from confcom.collateral.store.platforms import PlatformTcb
from confcom.collateral.store.store import CollateralStore
from confcom.errors import (
    CollateralError,
    CollateralNotFound,
    CollateralUnavailable,
    FormatError,
    VerificationError,
)
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest, PckCertsRequest
from confcom.services.runtime.allowances import Allowance
from confcom.services.runtime.process import Overloaded, WorkerThreads

if TYPE_CHECKING:
    from confcom.services.collateral.collateral_service import CollateralMetrics, CollateralServiceConfig

T = TypeVar("T")
MAX_REMEMBERED_FAILURES = 4096
"""Remembered failures; clients choose what they ask for, so the number is bounded."""
REMEMBER_FAILURE = 5.0
"""Seconds during which upstream is not asked again after a failure that may pass; `remember_missing` is for others."""
LEASE = timedelta(seconds=25)
"""Time for which a replica may ask upstream for something that the others wait for; one that died loses it then."""
LOOK_AT_LEASE = 0.2
"""Seconds between two looks at whether another replica has brought what is waited for."""
_ASKS: ContextVar[str] = ContextVar("_ASKS", default="")
"""The address for which a task asks upstream: its questions take turns with those of others."""
MAX_WAITING = 256
"""Requests to upstream that wait for a thread."""


class AskedTooOften(CollateralUnavailable):
    """Callers without a token caused as many questions to upstream as they may. Answered with 429."""

    default_advice = "Wait for a minute, or register the platform with the user token."


class Questions:
    """How many questions to upstream callers without a token may cause: one address, and all together."""

    def __init__(self, per_address: int, total: int, clock: Callable[[], float]) -> None:
        self._own = Allowance(per_address, clock)
        self._all = Allowance(total, clock)

    def spend(self, address: str) -> None:
        """Count one of an address, or raise `AskedTooOften`."""
        if self._own.wait(address):
            raise AskedTooOften("this address caused as many questions to upstream within a minute as it may")
        if self._all.wait(""):
            raise AskedTooOften("callers caused as many questions to upstream within a minute as they may")
        self._own.spend(address)
        self._all.spend("")


class Upstream(Protocol):
    """Where missing collateral comes from: a `CollateralSource`, as far as the service needs it. Calls block."""

    def fetch_document(self, key: DocumentKey) -> Document:
        """Get one document."""


@dataclass(frozen=True, slots=True)
class Served:
    """A document to serve. `stale`: it has expired and no newer one could be fetched.

    `issuer_chain` is PEM: the document's own, for the root CA CRL, which has none, the root.
    """

    document: Document
    expires: datetime
    issuer_chain: bytes
    stale: bool = False


class SingleFlight:
    """Runs one coroutine per key at a time; every caller meanwhile gets its outcome, also when others are cancelled."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the run that is under way for the key, or of a new one."""
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(start(), name=f"collateral {key}")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        # A cancelled caller must not cancel the run of the others.
        outcome: T = await asyncio.shield(task)
        return outcome

    def runs(self, key: Hashable) -> bool:
        return key in self._under_way

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: every caller may have been cancelled


class CollateralCache:
    """The store behind threads, and upstream behind the store."""

    def __init__(
        self,
        store: CollateralStore,
        upstream: Upstream | None,
        config: CollateralServiceConfig,
        metrics: CollateralMetrics,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        """Without an upstream the cache is offline: what is not in the store is not there."""
        self.store = store
        self.upstream = upstream
        self.source = source_name(config.upstream)
        self.clock = clock
        self.generation = 0
        """Grows whenever the store may have changed."""
        self.answer_timeout = config.answer_timeout
        self.confirmed = time.monotonic()
        """When the store was asked last whether it changed, in seconds of the monotonic clock."""
        self.grown = asyncio.Event()
        """Set at the same time, for the refresher."""
        self._metrics = metrics
        self._config = config
        self._questions = Questions(config.questions_per_address, config.questions, clock=lambda: clock().timestamp())
        self._flights = SingleFlight()
        self._readers = WorkerThreads("collateral-store", threads=2, max_waiting=4096)
        self._uploads = WorkerThreads("collateral-upload", threads=1, max_waiting=4)
        self._closing = False
        self._askers = WorkerThreads("collateral-upstream", threads=config.upstream_threads, max_waiting=MAX_WAITING)
        self._failures: OrderedDict[Hashable, tuple[float, CollateralError]] = OrderedDict()

    async def close(self) -> None:
        self._closing = True
        await self._flights.close()
        self._askers.close(timeout=0)
        await asyncio.to_thread(self._uploads.close)
        await asyncio.to_thread(self._readers.close)

    def store_changed(self) -> None:
        """Invalidate what was read from the store before."""
        self.generation += 1
        self.grown.set()

    async def read(self, call: Callable[[], T]) -> T:
        """Run a call on the store in its threads."""
        return await self._readers.run(call)

    async def upload(self, call: Callable[[Callable[[], None]], T]) -> T:
        """Run a long call on the store in a thread of its own, one at a time. It calls what it is given now and then,
        which lets other threads run, and ends it when the service does.
        """
        result = await self._uploads.run(lambda: call(self._yield))
        self.store_changed()
        return result

    def _yield(self) -> None:
        if self._closing:
            raise Overloaded
        time.sleep(0.0001)  # 0 would not let a thread that waits for the interpreter have it first

    async def document(self, key: DocumentKey, *, caller: str | None = None) -> Served:
        """A document: from the store while it is fresh, else from upstream, else a stale one from the store.

        `caller` is the address that asks without a token, None for a request with a token and for a refresh.
        """
        now = self.clock()
        stored = await self.read(lambda: self.stored(key, now))
        if stored is not None and not stored.stale:
            self._metrics.cache.labels("store").inc()
            return stored
        try:
            fetched = await self.once(key, lambda: self._fetch_for_all(key), caller=caller)
        except (CollateralError, Overloaded):
            self._metrics.cache.labels("missing" if stored is None else "stale").inc()
            if stored is None:
                raise
            return stored
        if fetched.stale:
            # Azure's cache serves documents that have expired; asking for them at every request makes them no fresher.
            self._remember(key, CollateralNotFound(f"{self.source} has only an expired {key}"))
        self._metrics.cache.labels("upstream").inc()
        return fetched

    async def _fetch_for_all(self, key: DocumentKey) -> Served:
        def brought() -> Served | None:
            found = self.stored(key, self.clock())
            return None if found is None or found.stale else found

        return await self.for_all(str(key), brought, lambda: self.fetch(key))

    async def for_all(
        self, name: str, brought: Callable[[], T | None], start: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Run `start` while no other replica does. What one has `brought` meanwhile (a call that blocks) is taken."""
        while not await self.read(lambda: self.store.take_lease(name, self.clock(), LEASE)):
            await asyncio.sleep(LOOK_AT_LEASE)
            if (found := await self.read(brought)) is not None:
                return found
        try:
            return await start()
        finally:
            with suppress(CollateralError, Overloaded):  # it ends by itself
                await self.read(lambda: self.store.release_lease(name))

    def stored(self, key: DocumentKey, now: datetime) -> Served | None:
        """The version in force in the store (a call that blocks)."""
        found = self.store.document_until(key, at=now)
        if found is None:
            return None
        document, expires = found
        chain = document.issuer_chain
        if key.kind is DocumentKind.ROOT_CA_CRL:
            chain = verify_document(document, roots=self.store.roots).root.pem
        return Served(document, expires, chain, stale=expires < now)

    async def fetch(self, key: DocumentKey) -> Served:
        """Ask upstream, verify, keep, and give what is then in force: an older answer does not replace a newer one."""
        upstream = self._required_upstream(str(key))
        document = await self._ask(key.kind.value, lambda: upstream.fetch_document(key))
        now = self.clock()
        served = await self._verified(lambda: self._keep(document, now))
        self.store_changed()
        return served

    def _keep(self, document: Document, now: datetime) -> Served:
        self.store.add([document], seen=now, source=self.source)
        stored = self.stored(document.key, now)
        if stored is None:
            raise CollateralNotFound(f"the store does not give the {document.key} back")
        return stored

    async def ask_pck_certificate(self, request: PckCertRequest) -> PckCertificateAnswer:
        """Ask upstream for a PCK certificate; who keeps it verifies it."""
        ask = self._pck_source(
            "fetch_pck_certificate",
            "gives no PCK certificates",
            "Register the platform with a service that does, or put its certificates into the store.",
        )
        answer: PckCertificateAnswer = await self._ask("pck-certificate", partial(ask, request))
        return answer

    async def ask_pck_certificates(self, request: PckCertsRequest) -> tuple[PckCertificateAnswer, ...]:
        """Ask upstream for all PCK certificates of a platform; who keeps them verifies them."""
        ask = self._pck_source(
            "fetch_pck_certificates",
            "does not list PCK certificates, as a platform without a raw TCB needs",
            "Register the platform with its CPUSVN, PCESVN and encrypted PPID too.",
        )
        entries, chain = await self._ask("pck-certificate", partial(ask, request))
        found = ((entry.certificate, entry.tcbm) for entry in entries if entry.certificate is not None)
        return tuple(PckCertificateAnswer(certificate, chain, tcbm) for certificate, tcbm in found)

    async def refresh(self, key: DocumentKey) -> Served:
        """Ask upstream for a document again, regardless of remembered failures; clients meanwhile share the outcome."""
        return await self._flights.run(key, lambda: self.fetch(key))

    async def once(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]], *, caller: str | None = None) -> T:
        """Run for a client: one run per key at a time, failures remembered for a while, no longer than it waits.

        `caller` as in `document`: too many runs that it begins are `AskedTooOften`.
        """
        until, failure = self._failures.get(key, (0.0, None))
        if failure is not None and time.monotonic() < until:
            raise _copy(failure)
        if caller is not None and self.upstream is not None and not self._flights.runs(key):
            self._questions.spend(caller)
        try:
            _ASKS.set(caller or "")
            async with asyncio.timeout(self.answer_timeout):
                return await self._flights.run(key, start)
        except TimeoutError:
            raise Overloaded from None
        except CollateralError as error:
            self._remember(key, error)
            raise

    async def keep(self, call: Callable[[], T]) -> T:
        """Run a call that verifies and writes; refusals count as upstream's."""
        result = await self._verified(call)
        self.store_changed()
        return result

    def _remember(self, key: Hashable, error: CollateralError) -> None:
        seconds = self._config.remember_missing
        if not isinstance(error, CollateralNotFound):
            seconds = min(seconds, REMEMBER_FAILURE)
        if self.upstream is None:
            return  # a file that is imported now must be seen now
        self._failures[key] = (time.monotonic() + seconds, _copy(error))
        self._failures.move_to_end(key)
        if len(self._failures) > MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def note_fallback(self, platform: PlatformTcb, reason: str) -> None:
        """Count and log that a platform gets a certificate that is not for its raw TCB."""
        self._metrics.fallbacks.inc()
        structlog.get_logger().warning(
            "collateral.pck_fallback", qe_id=platform.qe_id.hex(), cpu_svn=platform.cpu_svn.hex(), reason=reason
        )

    def forget_failures(self) -> None:
        """Ask upstream again for everything."""
        self._failures.clear()

    def _required_upstream(self, what: str) -> Upstream:
        if self.upstream is None:
            raise CollateralNotFound(
                f"{what} is not in the store, and this service is offline",
                advice="Import it into the store (`confcom collateral import`), or run the service with an upstream.",
            )
        return self.upstream

    def _pck_source(self, method: str, lacking: str, advice: str) -> Callable[..., Any]:
        """The method of upstream that gives PCK certificates, which not every source has."""
        found: Callable[..., Any] | None = getattr(self._required_upstream("a PCK certificate"), method, None)
        if found is None:
            raise CollateralNotFound(f"{self.source} {lacking}", advice=advice)
        return found

    async def _ask(self, what: str, call: Callable[[], T]) -> T:
        self._metrics.upstream_requests.labels(what).inc()
        return await self._verified(call, run=partial(self._askers.run, owner=_ASKS.get()))

    async def _verified(self, call: Callable[[], T], run: Callable[[Callable[[], T]], Awaitable[T]] | None = None) -> T:
        """Run a call; whatever is wrong with upstream's answer counts, and is a `CollateralError` with the reason."""
        try:
            return await (run or self._readers.run)(call)
        except CollateralError as error:
            self._metrics.upstream_errors.labels(error.code).inc()
            raise
        except (FormatError, VerificationError) as error:
            self._metrics.upstream_errors.labels(error.code).inc()
            raise CollateralUnavailable(
                f"{self.source} gave something that is refused: {error.code}: {error}", advice=error.advice()
            ) from error


def _copy(error: CollateralError) -> CollateralError:
    """The same error without the stack of where it was raised, which would keep everything there alive."""
    return type(error)(error.message, advice=error.advice())
