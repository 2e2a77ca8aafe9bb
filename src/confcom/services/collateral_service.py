"""The collateral service: what Intel publishes about platforms, by the paths of Intel's caching service (PCCS).

Clients of PCS and PCCS (Intel's QPL, az-dcap-client, Trustee, dcap-qvl) only change a URL. This module holds the
settings and the life of the process; `collateral_cache` has what is served, `collateral_http` how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.collateral.registrations import Registrations
from confcom.collateral.store import CollateralStore
from confcom.collateral.store_watch import StoreWatch
from confcom.errors import ConfigError
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import Tee
from confcom.services.collateral_admin import Administration, BodyLimits, Tokens
from confcom.services.collateral_answers import HotAnswers
from confcom.services.collateral_cache import CacheLimits, CollateralCache, Upstream
from confcom.services.collateral_http import CollateralApp
from confcom.services.collateral_metrics import CollateralMetrics
from confcom.services.collateral_pck import PckCertificates
from confcom.services.collateral_readiness import Readiness
from confcom.services.collateral_refresh import Refresher, RefreshPolicy
from confcom.services.http_server import Listener, serve_http
from confcom.services.tls import TlsFiles

WATCH_STORE = 1.0
"""Seconds between two looks at whether another process wrote to the store."""

_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_TokenHash = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{128}$")]


class CollateralServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the collateral service; the defaults are those for production."""

    listen: str = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes a free one. 8081 is where Intel's clients look."""
    unix_socket: str | None = None
    """Listen at this path instead; without TLS."""
    tls_certificate: str | None = None
    """PEM chain, leaf first. A renewed file is used without a restart."""
    tls_key: str | None = None
    """PEM key of the certificate."""
    insecure_http: bool = False
    """Serve without TLS. Everything that matters is signed by Intel, but tokens can then be read on the way."""
    store: str = "/var/lib/confcom/collateral.sqlite"
    """The collateral store; it is made if it is not there."""
    mode: Literal["lazy", "offline"] = "lazy"
    """lazy asks upstream for what is missing; offline serves the store alone."""
    upstream: str = "intel"
    """intel, pccs, thim, the URL of a PCS or PCCS, a folder, or simulated."""
    upstream_key_file: str | None = None
    """File with Intel's subscription key, or the token of the PCCS."""
    upstream_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of upstream may be of."""
    upstream_proxy: str | None = None
    """URL of the proxy to upstream."""
    azure_region: str | None = None
    """For thim: the region whose cache is asked for TDX."""
    simulated_machine: str | None = None
    """For simulated: the machine file of the platform."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's; the word intel adds Intel's."""
    fmspcs: tuple[str, ...] = ()
    """Kinds of platforms to keep collateral for, as FMSPC or tdx:FMSPC; /readyz speaks of these."""
    user_token_hash: _TokenHash | None = None
    """SHA-512 of the token for POST platforms, 128 hexadecimal digits."""
    admin_token_hash: _TokenHash | None = None
    """SHA-512 of the token for GET platforms, PUT platformcollateral and refresh, 128 hexadecimal digits."""
    refresh_every: _Seconds = 24 * 3600.0
    """Seconds after which upstream is asked for a newer version of what is here."""
    refresh_before: _Seconds = 7 * 24 * 3600.0
    """Seconds before its expiry from which a document is asked for at every retry."""
    refresh_retry: _Seconds = 600.0
    """Seconds between two tries to refresh the same thing."""
    refresh_look: _Seconds = 60.0
    """Seconds between two looks at what is due."""
    upstream_timeout: _Seconds = 10.0
    """Seconds for one answer of upstream; it is asked twice."""
    upstream_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Questions to upstream at a time."""
    answer_timeout: _Seconds = 20.0
    """Seconds that a client waits for upstream."""
    remember_missing: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Seconds during which upstream is not asked again for what it does not have."""
    memory: Annotated[int, msgspec.Meta(ge=0)] = 32 << 20
    """Bytes of answers kept in memory."""
    memory_entries: Annotated[int, msgspec.Meta(ge=0)] = 2048
    """Answers kept in memory."""
    max_body: Annotated[int, msgspec.Meta(ge=1024)] = 2 << 20
    """Bytes of a request's body."""
    max_head: Annotated[int, msgspec.Meta(ge=2048)] = 16 * 1024
    """Bytes of a request's line and headers."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; the one silent for longest makes room."""
    head_timeout: _Seconds = 5.0
    """Seconds for the TLS handshake, and for a request's head."""
    body_timeout: _Seconds = 15.0
    """Seconds for a request's body."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 30.0
    """Seconds that a connection may stay without a request."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 10.0
    """Seconds that requests under way get when the service stops."""


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
    """Serve until `stop` is set. `started` is told the URL; without `upstream`, or in offline mode, nobody is asked."""
    listener = listener_of(config)
    metrics = CollateralMetrics(registry or CollectorRegistry())
    async with AsyncExitStack() as stack:
        store = stack.enter_context(CollateralStore(_path(config), roots=roots))
        registrations = Registrations(store.path)
        stack.callback(registrations.close)
        watch = StoreWatch(store.path)
        stack.callback(watch.close)
        asked = None if config.mode == "offline" else upstream
        cache = CollateralCache(
            store, asked, source=config.upstream, clock=clock, metrics=metrics, limits=_cache_limits(config)
        )
        stack.push_async_callback(cache.close)
        certificates = PckCertificates(cache, registrations)
        policy = RefreshPolicy(
            every=config.refresh_every,
            before_expiry=config.refresh_before,
            retry=config.refresh_retry,
            look=config.refresh_look,
        )
        required = parse_fmspcs(config.fmspcs)
        refresher = Refresher(cache, certificates, registrations, policy=policy, metrics=metrics, required=required)
        readiness = Readiness(cache, metrics, required=required)
        administration = Administration(
            cache,
            certificates,
            registrations,
            refresher,
            tokens=Tokens(config.user_token_hash, config.admin_token_hash),
            limits=BodyLimits(config.max_body, config.body_timeout),
        )
        hot = HotAnswers(entries=config.memory_entries, size=config.memory)
        more = {**administration.routes(), **readiness.routes()}
        app = CollateralApp(cache, certificates, hot, metrics, more=more)
        tasks = [asyncio.create_task(_follow(watch, cache), name="store-watch")]
        if asked is not None:
            tasks.append(asyncio.create_task(refresher.run(), name="refresh"))
        for task in tasks:
            stack.push_async_callback(_end, task)
        await serve_http(app, listener, stop=stop, started=started)


async def _follow(watch: StoreWatch, cache: CollateralCache) -> None:
    """Notice what other processes put into the store."""
    while True:
        await asyncio.sleep(WATCH_STORE)
        if await cache.read(watch.changed):
            cache.store_changed()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(outcome, Exception):
        structlog.get_logger().error("collateral.task", task=task.get_name(), reason=str(outcome))


def _path(config: CollateralServiceConfig) -> Path:
    path = Path(config.store).expanduser()
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder of the store cannot be made: {path.parent}: {error.strerror}",
            advice="Name a store in a folder that can be written (--store PATH).",
        ) from error
    return path


def _cache_limits(config: CollateralServiceConfig) -> CacheLimits:
    return CacheLimits(
        answer_timeout=config.answer_timeout,
        remember_missing=config.remember_missing,
        remember_failure=min(config.remember_missing, CacheLimits().remember_failure),
        threads=config.upstream_threads,
    )


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


def listener_of(config: CollateralServiceConfig) -> Listener:
    """Where to listen; plain HTTP needs to be asked for."""
    tls = _tls(config)
    if tls is None and not config.insecure_http and config.unix_socket is None:
        raise ConfigError(
            "no TLS certificate is given",
            advice="Give --tls-certificate and --tls-key; for a first try on this machine, --insecure-http.",
        )
    return Listener(
        address=_address(config.listen) if config.unix_socket is None else Path(config.unix_socket),
        tls=tls,
        max_connections=config.max_connections,
        max_head=config.max_head,
        head_timeout=config.head_timeout,
        body_timeout=config.body_timeout,
        idle_timeout=config.idle_timeout,
        drain_timeout=config.drain_timeout,
    )


def _tls(config: CollateralServiceConfig) -> TlsFiles | None:
    if config.tls_certificate is None and config.tls_key is None:
        return None
    if config.tls_certificate is None or config.tls_key is None:
        raise ConfigError("a TLS certificate and its key come together", advice="Give both, or neither.")
    if config.insecure_http or config.unix_socket is not None:
        raise ConfigError("TLS is configured, and plain HTTP too", advice="Leave one of them out.")
    return TlsFiles(Path(config.tls_certificate), Path(config.tls_key))


def _address(text: str) -> tuple[str, int]:
    host, found, port = text.rpartition(":")
    if not found or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is not HOST:PORT", advice="Write it as 0.0.0.0:8081 or [::]:8081.")
    return host.strip("[]"), int(port)
