"""The tables of `confcom top` and its live view."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from confcom.addon.overview import NodeLine, Overview, PodLine, overview
from confcom.cli.outputs import print_json, printable
from confcom.cluster.epc_overview import ClusterEpc
from confcom.errors import ClusterError

WIDTH = 200
"""Columns where the output is no terminal, so that nothing is cut off."""
UNKNOWN = "-"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Before:
    """An earlier overview, and how many seconds ago it was: for rates."""

    overview: Overview
    seconds: float


def show(found: Overview, before: Before | None = None) -> RenderableType:
    """The tables of nodes and pods, then what is over and what is not known."""
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


def run(
    *,
    namespace: str | None,
    addon: str,
    once: bool,
    interval: float,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Ask the cluster and print, once or until the user stops it."""

    async def work() -> None:
        async with ClusterEpc.open(kubeconfig, context) as cluster:
            ask = partial(overview, cluster, namespace=namespace, addon=addon)
            if output == "json":
                print_json(asdict(await ask()))
            elif once or not sys.stdout.isatty():
                Console(width=None if sys.stdout.isatty() else WIDTH).print(show(await ask()))
            else:
                await _live(ask, interval)

    with suppress(KeyboardInterrupt):  # how users leave the live view
        asyncio.run(work())


async def _live(ask: Callable[[], Awaitable[Overview]], interval: float) -> None:
    found, asked = await ask(), time.monotonic()
    with Live(show(found), auto_refresh=False, screen=True) as screen:
        while True:
            screen.refresh()
            await asyncio.sleep(interval)
            try:
                later = await ask()
            except ClusterError as error:
                # Until it answers again the last figures stay, marked as old.
                said = f"these figures are {time.monotonic() - asked:.0f} s old: {error.message}"
                screen.update(show(replace(found, missing=(*found.missing, said))))
                continue
            now = time.monotonic()
            screen.update(show(later, Before(found, now - asked)))
            found, asked = later, now
