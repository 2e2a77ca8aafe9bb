"""An inspection for people: a tree with the meaning beside the bytes. Text from files is made safe first."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from confcom.appraisal.inspection.items import Inspection, Item
from confcom.cli.printable import printable

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
