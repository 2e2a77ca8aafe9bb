"""Results of the add-on's commands, as `az` gives them: JSON unless asked otherwise."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import yaml  # type: ignore[import-untyped]  # the package carries no types

from confcom.addon.changes import Shown
from confcom.addon.plan import Change
from confcom.cli.outputs import print_json, printable
from confcom.manifests.addon_state import API_KEY, AddonState, flat_settings
from confcom.manifests.objects import ADDON

WIDTH = 100
"""Columns of a table; what is longer goes on in the next line."""
_LEAST = 20
"""Columns that the last of a table needs to be one."""


def print_result(result: Any, output: str) -> None:  # noqa: ANN401 - JSON
    """Print a result in that form.

    A table of a list has a row per entry; of one object, a row per value, nested ones by their path. TSV is that of
    `az`: no titles, values in the order of their names, nested ones empty.
    """
    if output == "json":
        print_json(result)
    elif output == "yaml":
        click.echo(yaml.safe_dump(result, sort_keys=False), nl=False)
    elif output == "table":
        _print_table(result if isinstance(result, list) else _flattened(result))
    elif output == "tsv":
        for row in result if isinstance(result, list) else [result]:
            click.echo("\t".join(_tsv(row[name]) for name in sorted(row)))


def yaml_documents(objects: Sequence[Mapping[str, Any]]) -> str:
    """Objects as YAML, one document each."""
    # Through JSON, so that nothing is shared, and written as an alias.
    plain = json.loads(json.dumps(objects))
    text: str = yaml.dump_all(plain, Dumper=_Blocks, sort_keys=False, explicit_start=True, width=100_000)
    return text


class _Blocks(yaml.SafeDumper):  # type: ignore[misc]  # untyped, as the package
    """Writes text of several lines as a block, as it is read."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:  # noqa: ANN401 - the package's
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)


def profile(state: AddonState) -> dict[str, Any]:
    """The add-on in a cluster's profile, as the commands of `az` that change it print it."""
    entry = {"config": flat_settings(state.config), "enabled": state.enabled, "identity": None}
    return {"addonProfiles": {API_KEY: entry}}


def shown(found: Shown) -> dict[str, Any]:
    """What `show` prints: az's four entries, how many pods serve, and which wait for what."""
    return {
        "name": ADDON,
        "api_key": API_KEY,
        "config": flat_settings(found.state.config),
        "identity": None,
        "version": found.state.version,
        "ready": {one.name: f"{one.serving}/{one.wanted}" for one in found.progress},
        "waiting": list(found.waiting),
    }


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per row. The last column takes what is left of the width; without enough of it, rows become lists."""
    if not rows:
        return
    titles = list(rows[0])
    cells = [[_cell(row[title]) for title in titles] for row in rows]
    widths = [max(len(title), *(len(line[at]) for line in cells)) for at, title in enumerate(titles)]
    left = WIDTH - sum(width + 2 for width in widths[:-1])
    if left < min(_LEAST, widths[-1]):
        flat = [{"name": title, "value": text} for line in cells for title, text in zip(titles, line, strict=True)]
        _print_table([{"name": one["name"][: WIDTH - _LEAST - 2], "value": one["value"]} for one in flat])
        return
    widths[-1] = min(widths[-1], left)
    for line in (titles, ["-" * width for width in widths], *cells):
        first, *others = textwrap.wrap(line[-1], widths[-1], break_on_hyphens=False) or [""]
        words = (*line[:-1], first)
        click.echo("  ".join(text.ljust(width) for text, width in zip(words, widths, strict=True)).rstrip())
        for text in others:
            click.echo(f"{'':{WIDTH - left}}{text}")


def _flattened(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in _values(result)]


def _values(result: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in result.items():
        if isinstance(value, dict) and value:
            yield from _values(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return "".join(f"{key}={_cell(one)};" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return "" if value is None else printable(value)


def _tsv(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return str(len(value))
    return "" if isinstance(value, dict) else printable(value)


# Changes of a cluster.

_MARKS = {"create": ("+", "green"), "delete": ("-", "red"), "change": ("~", "yellow"), "unchanged": (" ", "")}
_LINES = {"+": "green", "-": "red", "@": "cyan"}


def show_changes(changes: Sequence[Change]) -> None:
    """One line per object, with the lines that change below; new objects are named only."""
    for change in changes:
        mark, colour = _MARKS[change.verb]
        click.echo(click.style(f"{mark} {change.verb} {printable(change.ref)}", fg=colour or None))
        if change.verb == "change":
            for line in change.diff:
                click.echo(click.style(f"    {printable(line)}", fg=_LINES.get(line[:1])))
    counts = {verb: sum(change.verb == verb for change in changes) for verb in _MARKS}
    click.echo(", ".join(f"{count} to {verb}" if verb != "unchanged" else f"{count} unchanged"
                         for verb, count in counts.items()))  # fmt: skip
