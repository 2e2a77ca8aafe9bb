"""The certificate of a collateral service in a cluster: of its own making, or given in a Secret; its CA published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from confcom.cluster.published_ca import PublishedCa
from confcom.services.certificate_keeper import CertificateKeeper
from confcom.services.certificate_rotation import RotationPolicy
from confcom.services.collateral_metrics import CollateralMetrics
from confcom.services.collateral_service_config import CollateralServiceConfig
from confcom.services.tls import HeldTls

COMMON_NAME = "confcom collateral service"
FIELD_MANAGER = "confcom-collateral"
CA_KEY = "ca-certificates.crt"
"""What programs on Debian and Ubuntu read in /etc/ssl/certs, so that the ConfigMap can be mounted there."""


class KeptTls(NamedTuple):
    """What to serve with, and who keeps it in order."""

    tls: HeldTls
    keeper: CertificateKeeper


@asynccontextmanager
async def kept_certificate(
    config: CollateralServiceConfig,
    metrics: CollateralMetrics,
    *,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
) -> AsyncIterator[KeptTls | None]:
    """The certificate while the block runs, once there is one; None if `stop` was set before.

    Credentials for the Kubernetes API that cannot be used are a `ConfigError`.
    """
    objects = PublishedCa(
        namespace=config.tls_namespace,
        secret=config.tls_secret,
        config_map=config.tls_config_map,
        key=CA_KEY,
        kubeconfig=config.kubeconfig,
        manager=FIELD_MANAGER,
    )
    policy = None if config.tls_given else _policy(config)
    keeper = CertificateKeeper(objects, policy, metrics, clock=clock, name="collateral")
    keeping = asyncio.create_task(keeper.run(config.tls_look_every), name="certificate")
    try:
        tls = await _first(keeper, keeping, stop)
        yield None if tls is None else KeptTls(tls, keeper)
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError, Exception):  # what ended it has been raised already
            await keeping
        await objects.close()


async def _first(keeper: CertificateKeeper, keeping: asyncio.Task[None], stop: asyncio.Event) -> HeldTls | None:
    first, stopped = asyncio.create_task(keeper.first()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({first, stopped, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
        return first.result() if first.done() else None
    finally:
        first.cancel()
        stopped.cancel()


def _policy(config: CollateralServiceConfig) -> RotationPolicy:
    lifetime, before, overlap = (
        timedelta(seconds=seconds) for seconds in (config.tls_lifetime, config.tls_renew_before, config.tls_overlap)
    )
    return RotationPolicy(config.names(), lifetime, before, overlap, COMMON_NAME)
