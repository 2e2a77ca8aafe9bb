"""`confcom metrics`: what containers use of EPC on this node."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from confcom.services.metrics.exporter import MetricsConfig, serve
from confcom.services.runtime.process import configure_logging, load, render, stop_on_signals


@click.command()
@click.option("--node-name", metavar="NAME", help="This node in the Kubernetes API.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials for the API; else the pod's service account.")
@click.option("--host-root", metavar="DIR", help="Where this process sees the host's root.  [default: /]")
@click.option("--simulated-node", metavar="DIR", help="Folder of the simulated node, where that is what this one is.")
@click.option("--http", metavar="ADDRESS", help="HOST:PORT of /healthz, /readyz and /metrics.  [default: [::]:9466]")
@click.option("--interval", type=float, metavar="SECONDS", help="Between two looks.  [default: 10]")
@click.option("--tolerance", type=float, metavar="SHARE", help="Of its request that may be exceeded.  [default: 0.1]")
@click.option("--patience", type=float, metavar="SECONDS", help="Over for as long, then reported.  [default: 30]")
@click.option("--enforce", type=click.Choice(["auto", "on", "off"]), help="Limits held by the kernel.  [default: auto]")
@click.option("--events/--no-events", default=None, help="Report as events of the pods.  [default: events]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log more.")
def metrics(config_file: Path | None, print_config: bool, debug: bool, **flags: Any) -> None:  # noqa: ANN401 - the settings, by name
    """Show what the containers of this node request and use of EPC, and report those that use more.

    Settings come from flags, from CONFCOM_METRICS_… in the environment, and from a file, in this order.
    """
    config = load(MetricsConfig, service="metrics", file=config_file, environment=os.environ, flags=flags)
    config.check()
    if print_config:
        click.echo(render(config))
        return
    configure_logging(verbose=debug)
    asyncio.run(_run(config))


async def _run(config: MetricsConfig) -> None:
    await serve(config, stop=stop_on_signals(), started=lambda text: click.echo(f"metrics: ready, {text}"))
