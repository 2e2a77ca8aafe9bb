"""The tables of `confcom top` and its live view."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from confcom.addon.overview import EnclaveLine, NodeLine, Overview, PodLine, age, overview
from confcom.cli.options import print_json, printable
from confcom.cluster.nodes import ClusterEpc
from confcom.errors import ClusterError, ExitCode
from confcom.protocols.epc import in_mib

ENDLESS = 100_000
"""Columns where the output is no terminal, so that nothing is cut off."""
UNKNOWN = "-"
DIGITS = 16
"""Digits of a measurement in a table; JSON has all 64."""


@dataclass(frozen=True, slots=True)
class Before:
    """An earlier overview, and how many seconds ago it was: for rates."""

    overview: Overview
    seconds: float


@dataclass(frozen=True, slots=True)
class View:
    """What is shown, and how: pods that match the glob, in the order of a column, pods or their enclaves."""

    pattern: str | None = None
    order: str = "name"
    enclaves: bool = False

    def arrange(self, found: Overview) -> Overview:
        """The overview with the lines that are wanted, in their order."""
        return replace(
            found,
            nodes=tuple(sorted(found.nodes, key=self._rank)),
            pods=tuple(sorted(filter(self._matches, found.pods), key=self._rank)),
            enclaves=tuple(sorted(filter(self._matches, found.enclaves), key=self._rank)),
        )

    def _matches(self, line: PodLine | EnclaveLine) -> bool:
        names = (line.name, f"{line.namespace}/{line.name}", line.node)
        return self.pattern is None or any(fnmatchcase(name, self.pattern) for name in names)

    def _rank(self, line: NodeLine | PodLine | EnclaveLine) -> tuple[str, float]:
        """By node, or the largest first; what is not known, or has no such column, last. Sorting keeps equal ones."""
        if self.order in ("name", "node"):
            return (getattr(line, "node", "") if self.order == "node" else "", 0)
        value = getattr(line, self.order.replace("-", "_"), None)
        return ("", math.inf if value is None else -value)


def show(found: Overview, before: Before | None = None, *, enclaves: bool = False, now: float = 0) -> RenderableType:
    """The tables of nodes and pods, or of enclaves as of `now`; then what is over and what is not known."""
    if enclaves:
        return Group(_enclaves(found, now), *_not_known(found))
    parts: list[RenderableType] = [_nodes(found, before), Text(""), _pods(found, before)]
    if any(line.over for line in found.pods):
        parts += [Text(""), *(_over(line) for line in found.pods if line.over)]
    return Group(*parts, *_not_known(found))


def _not_known(found: Overview) -> list[Text]:
    if not found.missing:
        return []
    return [Text(""), Text("not known:"), *(Text(f"  {printable(clause)}") for clause in found.missing)]


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


def _enclaves(found: Overview, now: float) -> Table:
    table = _table("POD", "NODE", "MRENCLAVE", "MRSIGNER", "PRODUCT", "SVN", "QUOTES", "LAST", "", words=4)
    for line in found.enclaves:
        marks = [word for word, shown in (("debug", line.debug), ("signer", line.signer_expected is False)) if shown]
        table.add_row(
            printable(f"{line.namespace}/{line.name}" if line.namespace else line.name),
            printable(line.node) or UNKNOWN,
            *(printable(word[:DIGITS]) or UNKNOWN for word in (line.mr_enclave, line.mr_signer)),
            *(UNKNOWN if number is None else f"{number}" for number in (line.isv_prod_id, line.isv_svn, line.quotes)),
            UNKNOWN if line.last is None else age(now - line.last),
            Text(", ".join(marks), style="bold red"),
        )
    return table


def _table(*columns: str, words: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words or not column else "right", no_wrap=True)
    return table


def _over(line: PodLine) -> Text:
    return Text(f"over: {printable(f'{line.namespace}/{line.name}: ' + ', '.join(line.over))}", style="red")


def _size(size: int | None) -> str:
    return UNKNOWN if size is None else in_mib(size)


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
    pattern: str | None,
    order: str,
    enclaves: bool,
    watch: bool | None,
    interval: float,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> ExitCode:
    """Ask the cluster and print, once or until the user stops it."""
    view = View(pattern, order, enclaves)

    async def work() -> None:
        async with ClusterEpc.open(kubeconfig, context, "confcom-top") as cluster:

            async def ask() -> Overview:
                return view.arrange(await overview(cluster, namespace=namespace, addon=addon))

            def draw(found: Overview, before: Before | None = None) -> RenderableType:
                return show(found, before, enclaves=view.enclaves, now=time.time())

            if output == "json":
                print_json(asdict(await ask()))
            elif watch is False or not sys.stdout.isatty():
                _print(draw(await ask()))
            else:
                await _live(ask, draw, interval)

    try:
        asyncio.run(work())
    except KeyboardInterrupt:  # how users leave the live view
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _print(tables: RenderableType) -> None:
    """Print once; what is no terminal gets whole lines without blanks at their ends."""
    if sys.stdout.isatty():
        Console().print(tables)
        return
    console = Console(width=ENDLESS)
    with console.capture() as written:
        console.print(tables)
    for line in written.get().splitlines():
        click.echo(line.rstrip())


async def _live(ask: Callable[[], Awaitable[Overview]], draw: Callable[..., RenderableType], interval: float) -> None:
    found, asked = await ask(), time.monotonic()
    with Live(draw(found), auto_refresh=False, screen=True) as screen:
        while True:
            screen.refresh()
            await asyncio.sleep(interval)
            try:
                later = await ask()
            except ClusterError as error:
                # Until it answers again the last figures stay, marked as old.
                said = f"these figures are {time.monotonic() - asked:.0f} s old: {error.message}"
                screen.update(draw(replace(found, missing=(*found.missing, said))))
                continue
            now = time.monotonic()
            screen.update(draw(later, Before(found, now - asked)))
            found, asked = later, now
