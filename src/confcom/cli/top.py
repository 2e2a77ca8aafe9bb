"""`confcom top`: EPC and quotes per node and pod of a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from confcom.addon.overview import NodeLine, Overview, PodLine, overview
from confcom.cli.inputs import printable
from confcom.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from confcom.cluster.epc_overview import ClusterEpc

# --- How `confcom top` looks: tables of nodes and pods, as text for people --------------------------------------------


UNKNOWN = "-"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Before:
    """An earlier overview, and how many seconds ago it was: for rates."""

    overview: Overview
    seconds: float


def show(found: Overview, before: Before | None = None) -> RenderableType:
    """Everything, one below the other."""
    parts: list[RenderableType] = [_nodes(found, before), Text(""), _pods(found, before)]
    if any(line.over for line in found.pods):
        parts += [Text(""), *(_over(line) for line in found.pods if line.over)]
    if found.missing:
        parts += [Text(""), Text("not known:"), *(Text(f"  {printable(clause)}") for clause in found.missing)]
    return Group(*parts)


def _nodes(found: Overview, before: Before | None) -> Table:
    table = _table("NODE", "ALLOCATABLE", "REQUESTED", "MAPPED", "IN USE", "PAGED", "QUOTES")
    earlier = {line.name: line for line in before.overview.nodes} if before is not None else {}
    for line in found.nodes:
        quotes = _quotes(line.quotes, earlier.get(line.name), before)
        paged = UNKNOWN if line.reclaim_seconds is None else f"{line.reclaim_seconds:.1f} s"
        sizes = (line.allocatable, line.requested, line.mapped, line.in_use)
        table.add_row(printable(line.name), *map(_size, sizes), paged, quotes)
    return table


def _pods(found: Overview, before: Before | None) -> Table:
    table = _table("POD", "NODE", "REQUESTED", "MAPPED", "IN USE", "QUOTES", "", words=2)
    earlier = {(line.namespace, line.name): line for line in before.overview.pods} if before is not None else {}
    for line in found.pods:
        quotes = _quotes(line.quotes, earlier.get((line.namespace, line.name)), before)
        sizes = (line.requested, line.mapped, line.in_use)
        mark = Text("over", style="bold red") if line.over else Text("")
        name = printable(f"{line.namespace}/{line.name}")
        table.add_row(name, printable(line.node) or UNKNOWN, *map(_size, sizes), quotes, mark)
    return table


def _table(*columns: str, words: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words or not column else "right", no_wrap=True)
    return table


def _over(line: PodLine) -> Text:
    return Text(f"over: {printable(f'{line.namespace}/{line.name}: ' + ', '.join(line.over))}", style="red")


def _size(size: int | None) -> str:
    if size is None:
        return UNKNOWN
    return f"{size / MIB:,.1f}".removesuffix(".0") + " MiB"


def _quotes(count: int | None, earlier: NodeLine | PodLine | None, before: Before | None) -> str:
    if count is None:
        return UNKNOWN
    if earlier is None or before is None or earlier.quotes is None or count < earlier.quotes:
        return f"{count}"
    return f"{count} ({(count - earlier.quotes) / max(before.seconds, 0.001):.1f}/s)"


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
    async with ClusterEpc.open(given.kubeconfig, given.context) as cluster:
        if given.output == "json":
            found = await _ask(cluster, given)
            click.echo(msgspec.json.format(msgspec.json.encode(asdict(found)), indent=2).decode())
        elif given.once or not sys.stdout.isatty():
            Console(width=None if sys.stdout.isatty() else WIDTH).print(show(await _ask(cluster, given)))
        else:
            await _live(cluster, given)


async def _live(cluster: ClusterEpc, given: TopOptions) -> None:
    found, asked = await _ask(cluster, given), time.monotonic()
    with Live(show(found), auto_refresh=False, screen=True) as screen:
        while True:
            screen.refresh()
            await asyncio.sleep(given.interval)
            try:
                later = await _ask(cluster, given)
            except ClusterError as error:
                # It may come back; until then the last figures stay, marked as such.
                said = f"these figures are {time.monotonic() - asked:.0f} s old: {error.message}"
                screen.update(show(replace(found, missing=(*found.missing, said))))
                continue
            now = time.monotonic()
            screen.update(show(later, Before(found, now - asked)))
            found, asked = later, now


async def _ask(cluster: ClusterEpc, given: TopOptions) -> Overview:
    return await overview(cluster, namespace=given.namespace, addon=given.addon_namespace)
