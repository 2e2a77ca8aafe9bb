"""The collateral service: what Intel publishes about platforms, by the paths of Intel's caching service (PCCS).

Clients of PCS and PCCS (Intel's QPL, az-dcap-client, Trustee, dcap-qvl) only change a URL. This module is the life
of the process; `collateral_cache` has what is served, `collateral_http` how, `collateral_tls` the certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from confcom.collateral.store import CollateralStore
from confcom.collateral.store_watch import StoreWatch
from confcom.errors import ConfigError
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import Tee
from confcom.services.allowances import Questions
from confcom.services.collateral_admin import Administration
from confcom.services.collateral_answers import HotAnswers, server_secrets
from confcom.services.collateral_cache import CacheLimits, CollateralCache, Upstream
from confcom.services.collateral_callers import Bodies, BodyLimits, Tokens
from confcom.services.collateral_http import CollateralApp
from confcom.services.collateral_metrics import CollateralMetrics
from confcom.services.collateral_pck import PckCertificates
from confcom.services.collateral_policies import PolicyPaths
from confcom.services.collateral_readiness import Readiness
from confcom.services.collateral_refresh import Refresher, RefreshPolicy
from confcom.services.collateral_service_config import CollateralServiceConfig
from confcom.services.collateral_tls import kept_certificate
from confcom.services.http_server import Listener, serve_http
from confcom.services.tls import HeldTls, TlsFiles

__all__ = ["CollateralServiceConfig", "serve"]

WATCH_STORE = 1.0
"""Seconds between two looks at whether another process wrote to the store."""


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
    config.check()

    def seconds() -> float:
        return clock().timestamp()

    metrics = CollateralMetrics(registry or CollectorRegistry())
    async with AsyncExitStack() as stack:
        kept = None
        if config.tls_secret:
            kept = await stack.enter_async_context(kept_certificate(config, metrics, clock=clock, stop=stop))
            if kept is None:
                return
        listener = listener_of(config, None if kept is None else kept.tls)
        store = stack.enter_context(CollateralStore(_path(config), roots=roots))
        watch = StoreWatch(store.path)
        stack.callback(watch.close)
        asked = None if config.mode == "offline" else upstream
        cache = CollateralCache(
            store,
            asked,
            source=config.upstream,
            clock=clock,
            metrics=metrics,
            limits=_cache_limits(config),
            questions=Questions(config.questions_per_address, config.questions, seconds),
        )
        stack.push_async_callback(cache.close)
        certificates = PckCertificates(cache)
        policy = RefreshPolicy(
            every=config.refresh_every,
            before_expiry=config.refresh_before,
            retry=config.refresh_retry,
            look=config.refresh_look,
        )
        required = parse_fmspcs(config.fmspcs)
        refresher = Refresher(cache, certificates, policy=policy, metrics=metrics, required=required)
        readiness = Readiness(
            cache, metrics, required=required, hindrance=lambda: "" if kept is None else kept.keeper.not_ready
        )
        tokens = Tokens(config.user_token_hash, config.admin_token_hash, clock=seconds)
        limits = BodyLimits(config.max_body, config.body_timeout, max(config.max_body, config.max_bodies))
        bodies = Bodies(limits, folder=store.path.parent)
        administration = Administration(cache, certificates, refresher, tokens=tokens, bodies=bodies)
        policies = PolicyPaths(cache, tokens=tokens, bodies=bodies)
        hot = HotAnswers(entries=config.memory_entries, size=config.memory)
        more = {**administration.routes(), **policies.routes(), **readiness.routes()}
        secrets = server_secrets(config.files())
        app = CollateralApp(cache, certificates, hot, metrics, more=more, secrets=secrets)
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


def listener_of(config: CollateralServiceConfig, held: HeldTls | None = None) -> Listener:
    """Where to listen, with a certificate that is held or one in files; plain HTTP needs to be asked for."""
    tls = held or _tls(config)
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
