"""Changes of a cluster, for people."""

from __future__ import annotations

from collections.abc import Sequence

import click

from confcom.addon.plan import Change
from confcom.cli.printable import printable

_MARKS = {"create": ("+", "green"), "delete": ("-", "red"), "change": ("~", "yellow"), "unchanged": (" ", "")}
_LINES = {"+": "green", "-": "red", "@": "cyan"}


def show_changes(changes: Sequence[Change]) -> None:
    """One line per object, with the lines that change below; new objects are named only."""
    for change in changes:
        mark, colour = _MARKS[change.verb]
        click.echo(click.style(f"{mark} {change.verb} {printable(str(change.ref))}", fg=colour or None))
        if change.verb == "change":
            for line in change.diff:
                click.echo(click.style(f"    {printable(line)}", fg=_LINES.get(line[:1])))
    counts = {verb: sum(change.verb == verb for change in changes) for verb in _MARKS}
    click.echo(", ".join(f"{count} to {verb}" if verb != "unchanged" else f"{count} unchanged"
                         for verb, count in counts.items()))  # fmt: skip
