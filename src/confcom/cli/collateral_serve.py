"""`confcom collateral serve`: collateral for every node, by the paths of Intel's caching service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from confcom.cli.collateral_options import trust_roots
from confcom.cli.inputs import read_input
from confcom.collateral.pcs_client import HttpLimits
from confcom.collateral.sources import SourceOptions, open_source
from confcom.collateral.store.database import is_store_file
from confcom.errors import ConfigError
from confcom.pki.roots import TrustRoots
from confcom.services.collateral import collateral_service as service
from confcom.services.collateral.cache import Upstream
from confcom.services.runtime.process import configure_logging, load, render, stop_on_signals

MAX_KEY = 4096
"""Bytes of the file with upstream's key."""


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:8081]")
@click.option("--unix-socket", metavar="PATH", help="Listen there instead, without TLS.")
@click.option("--tls-certificate", metavar="PEM", help="Certificate chain; reloaded when it changes.")
@click.option("--tls-key", metavar="PEM", help="Its key.")
@click.option("--tls-secret", metavar="NAME", help="In a cluster: where a certificate is kept that the service makes.")
@click.option("--insecure-http", is_flag=True, default=None, help="Serve without TLS.")
@click.option("--store", metavar="PATH", help="The collateral store.  [default: /var/lib/confcom/collateral.sqlite]")
@click.option("--mode", type=click.Choice(["lazy", "offline"]), help="Ask upstream for what is missing, or nobody.")
@click.option("--upstream", metavar="NAME", help="intel, pccs, thim, a URL, a folder, or simulated.  [default: intel]")
@click.option("--upstream-ca", metavar="PEM", help="CAs of upstream's TLS certificate.")
@click.option("--upstream-key-file", metavar="FILE", help="Intel's subscription key, or the PCCS's token.")
@click.option("--simulated-machine", metavar="FILE", help="With --upstream simulated: the platform's machine file.")
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root instead of Intel's.")
@click.option("--fmspc", "fmspcs", metavar="HEX", multiple=True, help="Keep its collateral (tdx:HEX for TDX).")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log every request, those answered from memory aside.")
def serve(config_file: Path | None, print_config: bool, debug: bool, **flags: Any) -> None:  # noqa: ANN401 - see config
    """Serve collateral to every node, as Intel's caching service (PCCS) does: existing clients only change a URL.

    Settings come from flags, from CONFCOM_COLLATERAL_SERVICE_… in the environment, and from a file, in this order.
    """
    config = load(
        service.CollateralServiceConfig,
        service="collateral-service",
        file=config_file,
        environment=os.environ,
        flags={name: value or None if isinstance(value, tuple) else value for name, value in flags.items()},
    )
    if print_config:
        click.echo(render(config))
        return
    config.check()
    if not config.tls_secret:
        service.listener_of(config)
    with _upstream(config) as (upstream, roots):
        configure_logging(verbose=debug)
        asyncio.run(_run(upstream, roots, config))


async def _run(upstream: Upstream | None, roots: TrustRoots, config: service.CollateralServiceConfig) -> None:
    origin = "offline" if upstream is None else f"upstream {config.upstream}"
    note = ", SIMULATED" if any(root.simulated for root in roots.roots) else ""
    await service.serve(
        upstream,
        config,
        roots=roots,
        clock=_now,
        stop=stop_on_signals(),
        started=lambda url: click.echo(f"collateral service: ready on {url}, {origin}{note}"),
    )


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read


@contextmanager
def _upstream(config: service.CollateralServiceConfig) -> Iterator[tuple[Upstream | None, TrustRoots]]:
    """Who is asked for what is missing, and which roots its answers may lead to."""
    roots = trust_roots(config.trust_roots)
    if config.mode == "offline" and config.upstream != "simulated":
        yield None, roots
    elif config.upstream == "simulated":
        yield _simulated(config, _now)
    else:
        if is_store_file(Path(config.upstream)):
            raise ConfigError(
                f"{config.upstream} is a store, not a source", advice="Serve it: --store PATH --mode offline."
            )
        with open_source(config.upstream, _source_options(config, roots)) as source:
            yield source, roots


def _simulated(
    config: service.CollateralServiceConfig, clock: Callable[[], datetime]
) -> tuple[Upstream | None, TrustRoots]:
    if config.simulated_machine is None:
        raise ConfigError(
            "a simulated upstream needs a machine file",
            advice="Make one with `confcom simulate machine -o FILE`, and name it with --simulated-machine FILE.",
        )
    # Here, because it brings the simulator along, and --help and --print-config do without.
    from confcom.wiring import simulated_upstream

    upstream = simulated_upstream(Path(config.simulated_machine), clock)
    return (None if config.mode == "offline" else upstream), upstream.trust_roots


def _source_options(config: service.CollateralServiceConfig, roots: TrustRoots) -> SourceOptions:
    timeout = config.upstream_timeout
    return SourceOptions(
        roots=roots,
        at=_now(),
        ca_certificates=None if config.upstream_ca is None else Path(config.upstream_ca),
        key=_key(config),
        proxy=config.upstream_proxy,
        azure_region=config.azure_region,
        # One retry: a client is waiting, and the next refresh asks again anyway.
        limits=HttpLimits(timeout=timeout / 2, deadline=timeout, retries=1, max_wait=2.0),
    )


def _key(config: service.CollateralServiceConfig) -> str | None:
    if config.upstream_key_file is None:
        return None
    path = Path(config.upstream_key_file)
    if config.upstream_key_optional and not path.exists():
        click.echo(f"collateral service: {path} is not there: upstream is asked without a key", err=True)
        return None
    return read_input(path, MAX_KEY, "upstream key").decode("ascii", "replace").strip()
