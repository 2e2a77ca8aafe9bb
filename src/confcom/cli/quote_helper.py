"""`confcom quote-helper`: serve quotes to every enclave of this node."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from confcom.platforms.interface import Platform
from confcom.services import quote_helper as service
from confcom.services.runtime import stop_on_signals
from confcom.services.settings import load, render
from confcom.services.telemetry import configure_logging


@click.command("quote-helper")
@click.option("--socket", "socket_path", metavar="PATH", help="Where to listen.  [default: /var/run/aesmd/aesm.socket]")
@click.option("--platform", type=click.Choice(["auto", "intel", "simulated"]), help="Who makes the quotes.")
@click.option(
    "--simulated-machine", "--machine", metavar="FILE", help="The simulated machine; its enclaves use it too."
)
@click.option("--replace", is_flag=True, default=None, help="Take the path over from a service that still answers.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log more, silent connections too.")
def quote_helper(
    socket_path: str | None,
    platform: str | None,
    simulated_machine: str | None,
    replace: bool | None,
    config_file: Path | None,
    print_config: bool,
    debug: bool,
) -> None:
    """Serve quotes to every enclave of this node, on the AESM socket that Intel's clients know.

    Settings come from flags, from CONFCOM_QUOTE_HELPER_… in the environment, and from a file, in this order.
    """
    config = load(
        service.QuoteHelperConfig,
        service="quote-helper",
        file=config_file,
        environment=os.environ,
        flags={
            "socket": socket_path,
            "platform": platform,
            "simulated_machine": simulated_machine,
            "replace": replace,
        },
    )
    if print_config:
        click.echo(render(config))
        return
    # Here, because it brings the simulator along, and --help and --print-config do without.
    from confcom.services.wiring import choose_platform, open_platform

    machine = Path(config.simulated_machine) if config.simulated_machine is not None else None
    choice = choose_platform(config.platform, machine=machine)
    opened = open_platform(config.platform, machine=machine)
    configure_logging(verbose=debug)
    asyncio.run(_run(opened, config, f"platform {choice.name} ({choice.reason})"))


async def _run(platform: Platform, config: service.QuoteHelperConfig, origin: str) -> None:
    await service.serve(
        platform,
        config,
        stop=stop_on_signals(),
        started=lambda: click.echo(f"quote helper: ready on {config.socket}, {origin}"),
    )
