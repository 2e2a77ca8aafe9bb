"""`confcom inspect`: what a file is, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from confcom.appraisal.inspection.explain import MAX_INSPECTED
from confcom.appraisal.inspection.explain import inspect as inspect_bytes
from confcom.appraisal.inspection.items import Inspection, Item
from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.inputs import printable, read_input
from confcom.errors import ConfcomError, FormatError


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: kind and fields.")
def inspect(file: Path, as_json: bool) -> int:
    """Decode FILE and explain it: quote, report, certificate, revocation list, collateral, AESM frame, token.

    Nothing is verified. Binary, hexadecimal, base64, PEM and JSON are recognised. '-' reads standard input.
    """
    data = read_input(file, MAX_INSPECTED, "input")
    try:
        found = inspect_bytes(data)
    except ConfcomError as error:
        if as_json:
            _print_json({"kind": None, "verified": False, "fields": {}, "error": error.as_dict()})
        else:
            _complain(error)
        return exit_code(error)
    if as_json:
        _print_json(found.as_dict())
    else:
        from confcom.cli.inspect import show

        show(found)
    return ExitCode.OK


def _print_json(document: dict[str, Any]) -> None:
    # JSON escapes every control character but this one.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def _complain(error: ConfcomError) -> None:
    message = str(error).removeprefix("input: ") if isinstance(error, FormatError) else str(error)
    click.echo(f"confcom: {printable(message)}", err=True)
    click.echo(f"  what to do: {printable(error.advice())}", err=True)


# --- An inspection for people: a tree with the meaning beside the bytes. Text from files is made safe first -----------


WARNING = "decoded, not verified: use confcom verify"

MAX_SHOWN = 64
"""Members of one list that are shown, and levels of nesting."""
MAX_TEXT = 2000
"""Characters of one value that are shown."""

_ENDLESS = 100_000


def show(inspection: Inspection, console: Console | None = None) -> None:
    """Print an inspection."""
    if console is None:
        # In a file or a pipe every item keeps to its line, so that a search finds whole hashes.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else _ENDLESS)
    console.print(Text(WARNING, style="yellow"))
    title = Text(printable(inspection.title), style="bold")
    title.append(f"  {inspection.size} bytes, {printable(inspection.encoding)}", style="dim")
    tree = Tree(title, guide_style="dim")
    _add(tree, inspection.items, 1)
    console.print(tree)


def _add(tree: Tree, items: tuple[Item, ...], depth: int) -> None:
    for number, item in enumerate(items, start=1):
        if number > MAX_SHOWN or depth > MAX_SHOWN:
            tree.add(Text(f"… and {len(items) - number + 1} more (--json shows all)", style="dim"))
            return
        plain = item.listed and all(child.children is None for child in item.children or ())
        branch = tree.add(_label(item, number, plain=plain))
        if item.children and not plain:
            _add(branch, item.children, depth + 1)


def _label(item: Item, number: int, *, plain: bool) -> Text:
    label = Text(printable(item.name) or f"{number}", style="bold cyan", overflow="fold")
    value = _words(item) if plain else _value(item)
    if value:
        label.append(f"  {_cut(value)}", style="not bold default")
    if item.meaning:
        label.append(f"  {_cut(printable(item.meaning))}", style="not bold green")
    if item.offset is not None:
        label.append(f"  [{item.offset}, {item.size} bytes]", style="not bold dim")
    return label


def _words(item: Item) -> str:
    return ", ".join(_value(child) for child in (item.children or ())[:MAX_SHOWN]) or "none"


def _value(item: Item) -> str:
    if item.children is not None:
        return ""
    if item.value is None:
        return "not stated"
    if isinstance(item.value, bool):
        return "yes" if item.value else "no"
    text = str(item.value)
    # A row of zeros says less than its length does.
    if item.size and item.size > 2 and text == "00" * item.size:
        return "zero"
    return printable(text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"
