"""`confcom quote-helper`: serve quotes to every enclave of this node."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path

import click

from confcom.platforms.interface import Platform
from confcom.services.quote_helper import helper as service
from confcom.services.quote_helper.request_log import RequestLog
from confcom.services.quote_helper.self_test import SelfTestKit
from confcom.services.runtime.process import configure_logging, load, render, restart_when_killed, stop_on_signals


@click.command("quote-helper")
@click.option("--socket", "socket_path", metavar="PATH", help="Where to listen.  [default: /var/run/aesmd/aesm.socket]")
@click.option("--platform", type=click.Choice(["auto", "intel", "simulated"]), help="Who makes the quotes.")
@click.option(
    "--simulated-machine", "--machine", metavar="FILE", help="The simulated machine; its enclaves use it too."
)
@click.option("--replace", is_flag=True, default=None, help="Take the path over from a service that still answers.")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--collateral", metavar="PATH", help="What verifies its quotes: a folder, collateral.json, or URL.")
@click.option("--collateral-ca", metavar="PEM", help="CAs of that service's TLS certificate.  [default: public ones]")
@click.option("--trust-root", metavar="PEM", help="The root that they chain to.  [default: Intel's]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log more, silent connections too.")
def quote_helper(
    socket_path: str | None,
    platform: str | None,
    simulated_machine: str | None,
    replace: bool | None,
    http: str | None,
    collateral: str | None,
    collateral_ca: str | None,
    trust_root: str | None,
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
            "http": http,
            "collateral": collateral,
            "collateral_ca": collateral_ca,
            "trust_root": trust_root,
        },
    )
    if print_config:
        click.echo(render(config))
        return
    # Here, because it brings the simulator along, and --help and --print-config do without.
    from confcom.wiring import choose_platform, open_platform, self_test_kit

    configure_logging(verbose=debug)
    restarts = restart_when_killed() if config.when_killed == "restart" else 0
    machine = Path(config.simulated_machine) if config.simulated_machine is not None else None
    choice = choose_platform(config.platform, machine=machine)
    socket = Path(config.socket)
    memory = socket.with_name(f".{socket.name}.pck-certificates")
    opened = open_platform(config.platform, machine=machine, pck_memory=memory)
    kit = self_test_kit(
        choice,
        opened,
        machine=machine,
        collateral=config.collateral,
        collateral_ca=config.collateral_ca,
        trust_root=config.trust_root,
    )
    origin = f"platform {choice.name} ({choice.reason})"
    # A person reads columns; a machine gets its lines from a thread of their own.
    log = None if sys.stderr.isatty() else RequestLog(verbose=debug)
    # What stands now stays: the collector need not walk through it again in the middle of a request.
    gc.collect()
    gc.freeze()
    try:
        asyncio.run(
            _run(opened, config, origin, kit, log, simulated=choice.name == "simulated", restarted=restarts > 0)
        )
    finally:
        if log is not None:
            log.close()
        if callable(close := getattr(opened, "close", None)):  # a platform in a process of its own
            close()


async def _run(
    platform: Platform,
    config: service.QuoteHelperConfig,
    origin: str,
    kit: SelfTestKit,
    log: RequestLog | None,
    *,
    simulated: bool,
    restarted: bool,
) -> None:
    await service.serve(
        platform,
        config,
        stop=stop_on_signals(),
        started=lambda: click.echo(f"quote helper: ready on {config.socket}, {origin}"),
        log=log,
        quick=simulated,
        restarted=restarted,
        self_test=kit,
    )
