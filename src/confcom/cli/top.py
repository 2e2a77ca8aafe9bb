"""`confcom top`: EPC and quotes per node and pod of a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import click
import msgspec
from rich.console import Console
from rich.live import Live

from confcom.addon.overview import Overview, Source, overview
from confcom.cli.top_view import Before, show
from confcom.errors import ClusterError, ConfigError

WIDTH = 200
"""Columns where the output is no terminal: nothing is to be cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    """The options of the command line, as given."""

    namespace: str | None
    addon_namespace: str
    once: bool
    interval: float
    output: str
    kubeconfig: str | None
    context: str | None


@click.command()
@click.option("-n", "--namespace", metavar="NAME", help="Show the pods of this namespace only.")
@click.option("--once", is_flag=True, help="Show it once, and stop. So it is where the output is no terminal.")
@click.option("--interval", metavar="SECONDS", type=click.FloatRange(min=0.5), default=3.0, show_default=True)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: once, sizes in bytes.")
@click.option("--addon-namespace", metavar="NAME", default="confcom-system", show_default=True, help="Of the add-on.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials. Default: $KUBECONFIG, or ~/.kube/config.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
def top(**options: object) -> None:
    """Show EPC (allocatable, requested, mapped, in use) and quotes per node and pod.

    Requests come from the API; use from the add-on's pods, through the API server's proxy, so a kubeconfig is all that
    is needed. What cannot be had is shown as '-', and said.
    """
    with suppress(KeyboardInterrupt):  # how one leaves the live view
        asyncio.run(_run(TopOptions(**options)))  # type: ignore[arg-type]  # click has checked them


async def _run(given: TopOptions) -> None:
    try:
        from confcom.cluster.epc_overview import ClusterEpc
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the cluster needs the package {error.name!r}", advice="Install confcom[cli,kube]."
        ) from error
    async with ClusterEpc.open(given.kubeconfig, given.context) as source:
        if given.output == "json":
            found = await _ask(source, given)
            click.echo(msgspec.json.format(msgspec.json.encode(asdict(found)), indent=2).decode())
        elif given.once or not sys.stdout.isatty():
            Console(width=None if sys.stdout.isatty() else WIDTH).print(show(await _ask(source, given)))
        else:
            await _live(source, given)


async def _live(source: Source, given: TopOptions) -> None:
    found, asked = await _ask(source, given), time.monotonic()
    with Live(show(found), auto_refresh=False, screen=True) as screen:
        while True:
            screen.refresh()
            await asyncio.sleep(given.interval)
            try:
                later = await _ask(source, given)
            except ClusterError as error:
                # It may come back; until then the last figures stay, marked as such.
                said = f"these figures are {time.monotonic() - asked:.0f} s old: {error.message}"
                screen.update(show(replace(found, missing=(*found.missing, said))))
                continue
            now = time.monotonic()
            screen.update(show(later, Before(found, now - asked)))
            found, asked = later, now


async def _ask(source: Source, given: TopOptions) -> Overview:
    return await overview(source, namespace=given.namespace, addon=given.addon_namespace)
