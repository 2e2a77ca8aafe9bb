"""The collateral service: what Intel publishes about platforms, by the paths of Intel's caching service (PCCS).

Clients of PCS and PCCS (Intel's QPL, az-dcap-client, Trustee, dcap-qvl) only change a URL. This module has settings and
metrics, and is the life of the process, with readiness; `cache` has what is served, `service_http` how, `certificates`
the TLS certificate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request

from confcom.collateral.documents import Dates, DocumentKey, rfc3339
from confcom.collateral.store.status import fleet_counts
from confcom.collateral.store.store import CollateralStore
from confcom.database.changes import Watch
from confcom.database.engine import DatabaseAddress
from confcom.errors import CollateralError, ConfcomError, ConfigError, FormatError, VerificationError
from confcom.formats.arguments import parse_tcp_address
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import HttpResponse, TcbSets, Tee, clients_of
from confcom.services.collateral.admin import Administration, Bodies, Tokens
from confcom.services.collateral.answers import Answer, HotAnswers, answer_of, json_answer, server_secrets
from confcom.services.collateral.cache import CollateralCache, SingleFlight, Upstream
from confcom.services.collateral.pck_certificates import PckCertificates
from confcom.services.collateral.refresh import Need, Refresher, needs_in
from confcom.services.collateral.service_http import CollateralApp, Routes
from confcom.services.runtime.certificates import CertificateMetrics, TlsSettings, kept_certificate
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.process import Overloaded, Seconds, background
from confcom.services.runtime.status_page import LEAVING, Metrics, component_registry
from confcom.services.runtime.tls import HeldTls, ReloadingTls

_TokenHash = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{128}$")]


class CollateralServiceConfig(TlsSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the collateral service; the defaults are those for production."""

    listen: str = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes a free one. 8081 is where Intel's clients look."""
    unix_socket: str | None = None
    """Listen at this path instead; without TLS."""
    tls_config_map: str = "confcom-collateral-ca"
    """ConfigMap that publishes the authorities of the certificate, under ca-certificates.crt."""
    tls_service: str = "confcom-collateral"
    """The Service by which clients find us; the certificate is for its name."""
    insecure_http: bool = False
    """Serve without TLS. Everything that matters is signed by Intel, but tokens can then be read on the way."""
    store: str = "/var/lib/confcom/collateral.sqlite"
    """The collateral store: a file, made if it is not there, or the URL of a PostgreSQL database."""
    mode: Literal["lazy", "offline"] = "lazy"
    """lazy asks upstream for what is missing; offline serves the store alone."""
    upstream: str = "intel"
    """intel, pccs, thim, the URL of a PCS or PCCS, a folder, or simulated."""
    upstream_key_file: str | None = None
    """File with Intel's subscription key, or the token of the PCCS."""
    upstream_key_optional: bool = False
    """Whether that file may be missing: upstream is asked without a key then."""
    upstream_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of upstream may be of."""
    upstream_proxy: str | None = None
    """URL of the proxy to upstream."""
    azure_region: str | None = None
    """For thim: the region of the cache that is asked for TDX."""
    simulated_machine: str | None = None
    """For simulated: the machine file of the platform."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's; the word intel adds Intel's."""
    fmspcs: tuple[str, ...] = ()
    """Kinds of platforms to keep collateral for, as FMSPC or tdx:FMSPC; /readyz speaks of these."""
    tcb_sets: tuple[str, ...] = ()
    """What `standard` is to clients: standard (Intel's own), early, or a TCB evaluation data number; with GROUP= before
    it, to those that ask below /group/GROUP."""
    user_token_hash: _TokenHash | None = None
    """SHA-512 of the token for POST platforms, 128 hexadecimal digits."""
    admin_token_hash: _TokenHash | None = None
    """SHA-512 of the token for GET platforms, PUT platformcollateral and refresh, 128 hexadecimal digits."""
    refresh_every: Seconds = 24 * 3600.0
    """Seconds after which upstream is asked for a newer version of what is here."""
    refresh_before: Seconds = 7 * 24 * 3600.0
    """Seconds before its expiry from which a document is asked for at every retry."""
    refresh_retry: Seconds = 600.0
    """Seconds between two tries to refresh the same thing."""
    refresh_look: Seconds = 60.0
    """Seconds between two looks at what is due."""
    upstream_timeout: Seconds = 10.0
    """Seconds for one answer of upstream; it is asked twice."""
    upstream_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Questions to upstream at a time."""
    answer_timeout: Seconds = 20.0
    """Seconds that a client waits for upstream."""
    remember_missing: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Seconds during which upstream is not asked again for what it does not have."""
    memory: Annotated[int, msgspec.Meta(ge=0)] = 32 << 20
    """Bytes of answers kept in memory."""
    memory_entries: Annotated[int, msgspec.Meta(ge=0)] = 2048
    """Answers kept in memory."""
    max_body: Annotated[int, msgspec.Meta(ge=1024)] = 256 << 20
    """Bytes of a PUT's body, which is kept in a file beside the store; a POST's has 256 KiB at most."""
    max_bodies: Annotated[int, msgspec.Meta(ge=1024)] = 512 << 20
    """Bytes of all requests' bodies at a time; never less than one may have."""
    questions_per_address: Annotated[int, msgspec.Meta(ge=1)] = 120
    """Questions to upstream per minute that one address may cause without a token."""
    questions: Annotated[int, msgspec.Meta(ge=1)] = 1200
    """Questions to upstream per minute that all addresses may cause without a token."""
    max_head: Annotated[int, msgspec.Meta(ge=2048)] = 16 * 1024
    """Bytes of a request's line and headers."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; beyond it, the address with most gives up the oldest one that waits for its client."""
    head_timeout: Seconds = 5.0
    """Seconds for the TLS handshake, and for a request's head."""
    body_timeout: Seconds = 15.0
    """Seconds for a request's body; a long one has a second more for each 256 KiB that came."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 30.0
    """Seconds that a connection may stay without a request."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 10.0
    """Seconds that requests under way get when the service stops."""

    def check(self) -> None:
        """Check fields against each other, and the sets: `ConfigError`."""
        super().check()
        TcbSets.parse(self.tcb_sets)

    @property
    def is_plain(self) -> bool:
        return self.insecure_http or self.unix_socket is not None

    def files(self) -> tuple[str, ...]:
        named = (self.store, self.unix_socket, self.tls_certificate, self.tls_key, self.kubeconfig)
        upstream = (self.upstream_key_file, self.upstream_ca, self.simulated_machine, *self.trust_roots)
        folder = () if "://" in self.upstream or "/" not in self.upstream else (self.upstream,)
        return tuple(name for name in (*named, *upstream, *folder) if name is not None)


LOOK_AGAIN = timedelta(seconds=30)
"""Time after which the store is read again, even without a known change."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in the store, by the time when it expires, and what should be there."""

    expires: dict[DocumentKey, datetime]
    dates: Dates | None
    needs: tuple[Need, ...]
    fleet: dict[tuple[str, str], int]
    seen: datetime
    generation: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A document that clients of some groups need for an FMSPC, and that is missing or has expired."""

    need: Need
    key: DocumentKey
    expired: datetime | None
    groups: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For machines and people; the group is empty for clients without one."""
        problem = "missing" if self.expired is None else f"expired at {rfc3339(self.expired)}"
        of = {"fmspc": self.need.fmspc.hex(), "tee": self.need.tee, "groups": list(self.groups)}
        return of | {"document": str(self.key), "problem": problem}


class Readiness:
    """Health, readiness and metrics: which FMSPC lacks which fresh document."""

    def __init__(
        self,
        cache: CollateralCache,
        metrics: CollateralMetrics,
        *,
        required: Sequence[tuple[Tee, bytes]] = (),
        sets: TcbSets,
        obstacle: Callable[[], str] = lambda: "",
    ) -> None:
        """`required` are the FMSPCs to be ready for, besides those of the known platforms and those asked for.

        `sets` are what clients get. `obstacle` is what else prevents clients from being served; empty if nothing does.
        """
        self._obstacle = obstacle
        self._sets = sets
        self._cache = cache
        self._metrics = metrics
        self._required = tuple(required)
        self._flight = SingleFlight()
        self._inventory: Inventory | None = None
        metrics.show_sets(sets)

    def routes(self) -> Routes:
        return {
            "/healthz": {"GET": self.healthz},
            "/readyz": {"GET": self.readyz},
            "/metrics": {"GET": self.metrics},
        }

    async def healthz(self, _request: Request) -> Answer:
        """The event loop runs."""
        return json_answer({"status": "alive"})

    async def readyz(self, _request: Request) -> Answer:
        """200 when clients can be served, else 503 with the reason; what some of them lack is a warning."""
        body = await self._state()
        return json_answer(body, status=200 if body["ready"] else 503)

    async def metrics(self, _request: Request) -> Answer:
        """Everything that is counted, in Prometheus' text form."""
        self._metrics.ready.set((await self._state())["ready"])
        if self._inventory is not None:
            now, expires = self._cache.clock(), self._inventory.expires
            self._metrics.show_expiry((key, (until - now).total_seconds()) for key, until in expires.items())
        body = generate_latest(self._metrics.registry)
        return answer_of(HttpResponse(200, (("Content-Type", CONTENT_TYPE_LATEST),), body))

    async def _state(self) -> dict[str, Any]:
        """Whether the service is ready, and why not: what /readyz and the metric say."""
        try:
            inventory = await self._look()
        except (ConfcomError, Overloaded) as error:
            return {"ready": False, "reason": f"the store cannot be read: {error}"}
        gaps = self.gaps(inventory)
        self._metrics.show_fleet(inventory.fleet)
        self._metrics.show_lacking((group, gap.need.tee, gap.need.fmspc.hex()) for gap in gaps for group in gap.groups)
        reason = self._reason(inventory, gaps)
        state: dict[str, Any] = {"ready": not reason}
        if reason:
            state["reason"] = reason
        elif gaps:
            state["warning"] = _lacking(gaps)
        sets = {group: str(update) for group, update in self._sets.by_group.items()}
        return state | {
            "sets": sets,
            "documents": len(inventory.expires),
            "lacking": [gap.as_dict() for gap in gaps],
        }

    def _reason(self, inventory: Inventory, gaps: Sequence[Gap]) -> str:
        if reason := self._obstacle():
            return reason
        if self._cache.upstream is None and not inventory.expires:
            return "the store is empty, and this service is offline: import collateral"
        if inventory.dates is not None and (reason := inventory.dates.clock_problem(self._cache.clock())):
            return reason
        # One FMSPC or one group's pin does not take the service from the others: every replica lacks the same.
        if gaps and {gap.need for gap in gaps} == set(inventory.needs):
            return _lacking(gaps)
        return ""

    def gaps(self, inventory: Inventory) -> list[Gap]:
        """What is lacking now, by FMSPC.

        A document that was never fetched is lacking where a configured FMSPC or a known platform needs it, or without
        upstream. Elsewhere only expired ones are.
        """
        now, offline = self._cache.clock(), self._cache.upstream is None
        return [
            Gap(
                need, key, expires, tuple(name for name, update in self._sets.by_group.items() if update == need.update)
            )
            for need in inventory.needs
            for key, expires in ((key, inventory.expires.get(key)) for key in need.keys)
            if (expires is None and (need.firm or offline)) or (expires is not None and expires < now)
        ]

    async def _look(self) -> Inventory:
        known, now = self._inventory, self._cache.clock()
        fresh = known is not None and timedelta() <= now - known.seen <= LOOK_AGAIN  # clocks are set back, too
        if known is None or known.generation != self._cache.generation or not fresh:
            known = self._inventory = await self._flight.run("inventory", self._take)
        return known

    async def _take(self) -> Inventory:
        now, generation, store = self._cache.clock(), self._cache.generation, self._cache.store

        def look() -> Inventory:
            needs = needs_in(store, self._required, self._sets.served)
            needed = (key for need in needs for key in need.keys)  # a number may have been served by its name alone
            keys = dict.fromkeys((*store.document_keys(), *needed))
            found = ((key, store.in_force(key, at=now)) for key in keys)
            versions = {key: version for key, version in found if version is not None}
            expires = {key: version.expires for key, version in versions.items()}
            dates = Dates.of((version.facts.issue_date, version.expires) for version in versions.values())
            fleet = fleet_counts(store, now, self._sets)
            return Inventory(expires, dates, needs, fleet, now, generation)

        return await self._cache.read(look)


def _lacking(gaps: Iterable[Gap]) -> str:
    lacking = {f"{gap.need.fmspc.hex()} ({gap.need.tee}){_by(gap)}": None for gap in gaps}
    return f"fresh collateral is lacking for FMSPC {', '.join(sorted(lacking))}"


def _by(gap: Gap) -> str:
    if gap.need.update == "standard":
        return ""
    return f" by set {gap.need.update}, to which {' and '.join(map(clients_of, gap.groups))} are pinned"


__all__ = ["CollateralServiceConfig", "serve"]


async def serve(
    upstream: Upstream | None,
    config: CollateralServiceConfig,
    *,
    roots: TrustRoots,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
) -> None:
    """Serve until `stop` is set; from the store alone if offline or without `upstream`. `started` gets the URL."""
    config.check()

    metrics = CollateralMetrics(registry or component_registry("collateral"))
    async with AsyncExitStack() as stack:
        kept = None
        if config.tls_secret:
            keeping = kept_certificate(config, metrics.certificate, service="collateral", clock=clock, stop=stop)
            kept = await stack.enter_async_context(keeping)
            if kept is None:
                return
        listener = listener_of(config, None if kept is None else kept.tls)
        metrics.certificate.served_by(listener.tls)
        store = stack.enter_context(CollateralStore(_prepared(config.store), roots=roots))
        failed = "Reads and writes of the store that failed."
        metrics.reading("store_failures", failed, lambda: store.failures, counter=True)
        asked = None if config.mode == "offline" else upstream
        cache = CollateralCache(store, asked, config, metrics, clock=clock)
        stack.push_async_callback(cache.close)
        stack.callback(Watch(store.database, _Follower(cache).look).close)
        certificates = PckCertificates(cache)
        required, sets = parse_fmspcs(config.fmspcs), TcbSets.parse(config.tcb_sets)
        refresher = Refresher(cache, certificates, config, metrics, required=required, served=sets.served)

        def obstacle() -> str:
            if stop.is_set():
                return LEAVING
            reason = "" if kept is None else kept.keeper.not_ready
            return f"clients do not trust the certificate yet: {reason}" if reason else ""

        readiness = Readiness(cache, metrics, required=required, sets=sets, obstacle=obstacle)
        tokens = Tokens(config, clock=lambda: clock().timestamp())
        file = store.address.path
        bodies = Bodies(config, folder=None if file is None else file.parent)
        administration = Administration(cache, certificates, refresher, tokens=tokens, bodies=bodies)
        hot = HotAnswers(entries=config.memory_entries, size=config.memory)
        more = {**administration.routes(), **readiness.routes()}
        secrets = server_secrets(config.files())
        app = CollateralApp(cache, certificates, hot, metrics, more=more, secrets=secrets, sets=sets)
        if asked is not None:
            metrics.last_refresh = 0.0
            await stack.enter_async_context(background("refresh", refresher.run))
        await serve_http(app, listener, stop=stop, started=started)


class _Follower:
    """Compares the store's count of changes with the last one; called in the thread of a `Watch`."""

    def __init__(self, cache: CollateralCache) -> None:
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        self._known: int | None = None

    def look(self, _topic: str) -> None:
        """Have what is in memory read again, if another process wrote or the store does not answer."""
        asked = time.monotonic()
        try:
            found = self._cache.store.foreign_changes()
        except CollateralError:
            found = None
        changed, self._known = found is None or found != self._known, found
        self._loop.call_soon_threadsafe(self._note, asked, changed, found is not None)

    def _note(self, asked: float, changed: bool, answered: bool) -> None:
        if answered:
            self._cache.confirmed = asked
        if changed:
            self._cache.store_changed()


def _prepared(store: str) -> str:
    """The store's address; the folder of a file is made."""
    address = DatabaseAddress.parse(store)
    if address.path is None:
        return store
    try:
        path = address.path.expanduser()
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # the latter for ~ of a user without a home
        raise ConfigError(
            f"the folder of the store {store} cannot be made: {getattr(error, 'strerror', error)}",
            advice="Name a store in a folder that can be written (--store PATH).",
        ) from error
    return str(path)


def parse_fmspcs(named: tuple[str, ...]) -> tuple[tuple[Tee, bytes], ...]:
    """FMSPCs with the kind of quotes, from FMSPC or tdx:FMSPC; anything else is a `ConfigError`."""
    found: list[tuple[Tee, bytes]] = []
    for name in named:
        kind, _, digits = name.rpartition(":")
        try:
            fmspc = bytes.fromhex(digits)
        except ValueError:
            fmspc = b""
        if kind not in ("", "sgx", "tdx") or len(fmspc) != 6:
            raise ConfigError(f"{name!r} is not an FMSPC", advice="Write 12 hexadecimal digits, after tdx: for TDX.")
        found.append(("tdx" if kind == "tdx" else "sgx", fmspc))
    return tuple(found)


def listener_of(config: CollateralServiceConfig, held: HeldTls | None = None) -> Listener:
    """Where to listen, with a certificate that is held or one in files; plain HTTP needs to be asked for."""
    files = config.tls_files() if held is None else None
    return Listener(
        address=parse_tcp_address(config.listen) if config.unix_socket is None else Path(config.unix_socket),
        tls=held if files is None else ReloadingTls(files),
        max_connections=config.max_connections,
        max_head=config.max_head,
        head_timeout=config.head_timeout,
        body_timeout=config.body_timeout,
        idle_timeout=config.idle_timeout,
        leave_after=config.leave_after,
        drain_timeout=config.drain_timeout,
    )


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
        for group, update in sets.by_group.items():
            self._sets.labels(group, str(update)).set(1)

    def show_fleet(self, counts: Mapping[tuple[str, str], int]) -> None:
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
