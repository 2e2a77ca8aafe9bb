"""`confcom inspect`: what a file is, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from confcom.cli.options import STREAM, complain, output_options, print_json, printable, read_input
from confcom.errors import ConfcomError, ExitCode, FormatError, exit_code

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from confcom.appraisal.inspection.items import Inspection, Item

WARNING = "decoded, not verified: use confcom {}"
MAX_SHOWN = 64
"""Members of one list that are shown, and levels of nesting."""
MAX_TEXT = 2000
"""Characters of one value that are shown."""
_ENDLESS = 100_000


@click.command("inspect")
@click.argument("file", type=STREAM)
@output_options
def inspect(file: Path, as_json: bool) -> int:
    """Decode FILE and explain it: quote, report, certificate, revocation list, collateral, AESM frame, token.

    Nothing is verified. Binary, hexadecimal, base64, PEM and JSON are recognised. '-' reads standard input.
    """
    from confcom.appraisal.inspection.explain import MAX_INSPECTED
    from confcom.appraisal.inspection.explain import inspect as inspect_bytes

    try:
        found = inspect_bytes(read_input(file, MAX_INSPECTED, "input"))
    except ConfcomError as error:
        if as_json:
            print_json({"kind": None, "verified": False, "fields": {}, "error": error.as_dict()})
        else:
            message = str(error).removeprefix("input: ") if isinstance(error, FormatError) else str(error)
            complain(message, error.advice())
        return exit_code(error)
    if as_json:
        print_json(found.as_dict())
    else:
        show(found)
    return ExitCode.OK


def show(inspection: Inspection, console: Console | None = None) -> None:
    """Print an inspection as a tree with the meaning beside the bytes; text from files is escaped."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    if console is None:
        # In a file or a pipe every item stays on one line, so that a search finds whole hashes.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else _ENDLESS)
    verify = "token verify" if inspection.kind == "attestation-token" else "verify"
    console.print(Text(WARNING.format(verify), style="yellow"))
    title = Text(printable(inspection.title), style="bold")
    title.append(f"  {inspection.size} bytes, {printable(inspection.encoding)}", style="dim")
    tree = Tree(title, guide_style="dim")
    _add(tree, inspection.items, 1)
    console.print(tree)


def _add(tree: Tree, items: tuple[Item, ...], depth: int) -> None:
    from rich.text import Text

    for number, item in enumerate(items, start=1):
        if number > MAX_SHOWN or depth > MAX_SHOWN:
            tree.add(Text(f"… and {len(items) - number + 1} more (--json shows all)", style="dim"))
            return
        plain = item.listed and all(child.children is None for child in item.children or ())
        branch = tree.add(_label(item, number, plain=plain))
        if item.children and not plain:
            _add(branch, item.children, depth + 1)


def _label(item: Item, number: int, *, plain: bool) -> Text:
    from rich.text import Text

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
    # The length of a field of zeros, shown beside it, says more than the digits.
    if item.size and item.size > 2 and text == "00" * item.size:
        return "zero"
    return printable(text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"
