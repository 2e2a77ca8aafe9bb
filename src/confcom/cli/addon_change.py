"""What `confcom addon` does: connect to the cluster, change or show the add-on, print the result.

Results are printed in the formats of `az`: JSON by default.
"""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml  # type: ignore[import-untyped]  # the package carries no types

from confcom.addon.changes import Addon, Shown, next_ca, simulated_objects, to_enable, to_update
from confcom.addon.plan import Change
from confcom.cli.addon import DESCRIPTION
from confcom.cli.options import given_by, note, now, option_of, print_json, printable, read_input
from confcom.cluster.client import ClusterObjects
from confcom.errors import ConfigError
from confcom.manifests.addon import API_KEY, AddonState, flat_settings, issuers, remarks, render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import ADDON, MANAGER
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET

VERSION = version("confcom")
MAX_SHOWN = 20
"""Pods that are named one by one."""
MAX_MACHINE = 16 * 1024
"""Bytes of a machine file."""
_LISTS = ("provision_grants", "api_ports", "api_addresses", "quote_helper_groups", "expected_signers", "approve_for")
"""Settings that are given as one word with commas."""
_Result = TypeVar("_Result")


def with_addon(flags: dict[str, Any], work: Callable[[Addon], Awaitable[_Result]]) -> _Result:
    """Take the cluster's options out of the flags, connect, do the work, and disconnect."""
    of_az = {"--name": "cluster_name", "--resource-group": "resource_group", "--subscription": "subscription"}
    given = [option for option, name in of_az.items() if flags.pop(name, None) is not None]
    kubeconfig, context = flags.pop("kubeconfig"), flags.pop("context")
    if given:
        note(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} az's: the cluster is that of the kubeconfig")

    async def run() -> _Result:
        async with ClusterObjects.open(kubeconfig, context, MANAGER) as cluster:
            return await work(Addon(cluster, version=VERSION, now=now(), report=note))

    with given_by(option_of):
        return asyncio.run(run())


def changes_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that were given out of a command's options; an empty word clears a list.

    A wrong one is a `ConfigError` that names its option.
    """
    found: dict[str, Any] = {}
    for field in AddonConfig.__struct_fields__:
        value = flags.pop(field, None)
        if isinstance(value, tuple) and value:
            found[field] = [word for word in value if word]
        elif value is not None and value != ():
            found[field] = _words(value) if field in _LISTS else value
    AddonConfig.read(found, option_of)
    return found


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def _change(settle: Callable[[dict[str, Any], AddonState | None], AddonConfig], **flags: Any) -> None:  # noqa: ANN401
    """Change the settings of the add-on as `settle` says, and print its profile."""
    changes = changes_of(flags)

    async def work(addon: Addon) -> AddonConfig:
        config = settle(changes, await addon.state())
        for remark in remarks(config):
            note(remark)
        if flags["dry_run"]:
            show_changes(await addon.plan(config))
            return config
        return await addon.change(partial(settle, changes), wait=None if flags["no_wait"] else flags["timeout"])

    config = with_addon(flags, work)
    if flags["dry_run"]:
        note("dry run: nothing was changed")
    else:
        print_result(profile(AddonState(enabled=True, version=VERSION, config=config)), flags["output"])


enable, update = partial(_change, to_enable), partial(_change, to_update)


def disable(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Say which pods use the add-on, disable it, and print its profile."""

    async def work(addon: Addon) -> AddonState:
        await _say_who_uses_it(addon, ask=not (flags["yes"] or flags["dry_run"]), purge=flags["purge"])
        state = await addon.state()
        if flags["dry_run"]:
            show_changes(await addon.removals(purge=flags["purge"]))
            note("dry run: nothing was changed")
        elif not await addon.disable(purge=flags["purge"], wait=None if flags["no_wait"] else flags["timeout"]):
            note("the add-on is not installed: nothing to do")
        return AddonState(enabled=False, version=VERSION, config=AddonConfig() if state is None else state.config)

    state = with_addon(flags, work)
    if not flags["dry_run"]:
        kept = AddonState(enabled=False, version=VERSION, config=AddonConfig()) if flags["purge"] else state
        print_result(profile(kept), flags["output"])


async def _say_who_uses_it(addon: Addon, *, ask: bool, purge: bool) -> None:
    found = await addon.uses()
    for use in found[:MAX_SHOWN]:
        note(f"in use by {use}")
    if len(found) > MAX_SHOWN:
        note(f"… and {len(found) - MAX_SHOWN} more pods")
    if found and ask and purge and not sys.stdin.isatty():
        raise ConfigError(
            f"{len(found)} pods use the add-on, and there is no terminal to ask whether to purge it",
            advice="End them first, or say --yes.",
        )
    if found and ask and sys.stdin.isatty():
        click.confirm(f"{len(found)} pods use the add-on. Disable it?", abort=True, err=True)


def clean_nodes(timeout: float, **flags: Any) -> None:  # noqa: ANN401 - by name
    """End the node components and clean the nodes."""
    with_addon(flags, lambda addon: addon.clean_nodes(wait=timeout))


def publish_root(simulated_world: Path, **flags: Any) -> None:  # noqa: ANN401 - by name
    """Write the root of a simulated world to its ConfigMap."""
    content = read_input(simulated_world, MAX_MACHINE, "machine file")
    with_addon(flags, lambda addon: addon.publish_root(content))


def manifests(simulated_world: Path | None, **flags: Any) -> None:  # noqa: ANN401 - by name
    """Print every object as YAML."""
    with given_by(option_of):
        config = AddonConfig().changed(changes_of(flags))
    cas = {issuer.secret: next_ca(issuer, {}, b"", now()) for issuer in issuers(config)}
    objects = render(config, version=VERSION, cas=cas)
    if config.platform == "simulated":
        if simulated_world is None:
            note(f"not included: Secret {WORLD_SECRET} with the key {WORLD_KEY}; name its content: --simulated-world")
        else:
            content = read_input(simulated_world, MAX_MACHINE, "machine file")
            objects[2:2] = simulated_objects(now(), machine_file=content)
    elif simulated_world is not None:
        raise ConfigError("--simulated-world is for --platform simulated")
    click.echo(yaml_documents(objects), nl=False)


def show(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Print the settings and how many pods of each component serve."""
    found = with_addon(flags, Addon.show)
    print_result(shown(found), flags["output"])


def list_(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Print the add-ons of this cluster."""
    state = with_addon(flags, Addon.state)
    enabled = state is not None and state.enabled
    print_result([{"name": ADDON, "api_key": API_KEY, "enabled": enabled}], flags["output"])


def list_available(output: str) -> None:
    """Print the add-ons that could be enabled."""
    print_result([{"name": ADDON, "description": DESCRIPTION}], output)


# Results.

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
        pairs = [] if isinstance(result, list) else _values(result)
        _print_table(result if isinstance(result, list) else [{"name": name, "value": value} for name, value in pairs])
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
