"""`confcom addon enable` and `confcom addon update`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from confcom.addon.changes import Addon, next_ca, to_enable, to_update
from confcom.cli.addon_options import (
    VERSION,
    addon_option,
    changes_of,
    note,
    setting_options,
    target_of,
    target_options,
    with_addon,
)
from confcom.cli.addon_output import output_option, print_result, profile, show_changes, shown, yaml_documents
from confcom.cli.inputs import read_input
from confcom.errors import ConfigError
from confcom.manifests import collateral
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import API_KEY, AddonState
from confcom.manifests.objects import ADDON
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET

DEFAULT_TIMEOUT = 300

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
_NO_WAIT = click.option("--no-wait", is_flag=True, help="Do not wait until everything runs.")
_TIMEOUT = click.option(
    "--timeout", type=click.IntRange(1, 86400), default=DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait."
)


@click.command()
@addon_option
@setting_options
@_DRY_RUN
@_NO_WAIT
@_TIMEOUT
@output_option
@target_options
def enable(**flags: Any) -> None:  # noqa: ANN401 - the options, by name
    """Enable the add-on, and wait until it runs on every SGX node.

    An add-on that is enabled already is changed as by `update`; one that was disabled comes back with its settings,
    unless it was purged.
    """
    _change(flags, to_enable)


@click.command()
@addon_option
@setting_options
@_DRY_RUN
@_NO_WAIT
@_TIMEOUT
@output_option
@target_options
def update(**flags: Any) -> None:  # noqa: ANN401 - the options, by name
    """Change settings of the enabled add-on. What is not mentioned stays as it is.

    Without any, bring everything to this version of the program.
    """
    _change(flags, to_update)


def _change(flags: dict[str, Any], settle: Callable[[dict[str, Any], AddonState | None], AddonConfig]) -> None:
    target, changes = target_of(flags), changes_of(flags)

    async def work(addon: Addon) -> AddonConfig:
        config = settle(changes, await addon.state())
        if remark := collateral.remark(config):
            note(remark)
        if flags["dry_run"]:
            show_changes(await addon.plan(config))
            return config
        return await addon.change(partial(settle, changes), wait=None if flags["no_wait"] else flags["timeout"])

    config = with_addon(target, work)
    if flags["dry_run"]:
        note("dry run: nothing was changed")
    else:
        print_result(profile(AddonState(enabled=True, version=VERSION, config=config)), flags["output"])


# --- `confcom addon disable` ------------------------------------------------------------------------------------------


MAX_SHOWN = 20
"""Pods that are named one by one."""


@click.command()
@addon_option
@click.option("--purge", is_flag=True, help="Forget the settings and the simulated world too; leave nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, even if pods use the add-on.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--no-wait", is_flag=True, help="Do not wait until everything is gone.")
@click.option("--timeout", type=click.IntRange(1, 86400), default=DEFAULT_TIMEOUT, show_default=True, help="Seconds.")
@output_option
@target_options
def disable(**flags: Any) -> None:  # noqa: ANN401 - the options, by name
    """Disable the add-on. Says first which pods use it.

    Running pods keep their devices; new ones that ask for EPC stay Pending, and quotes from the helper end. The
    settings are remembered for the next enable, unless they are purged.
    """
    target = target_of(flags)

    async def work(addon: Addon) -> AddonState:
        await _say_who_uses_it(addon, ask=not (flags["yes"] or flags["dry_run"]), purge=flags["purge"])
        state = await addon.state()
        if flags["dry_run"]:
            show_changes(await addon.removals(purge=flags["purge"]))
            note("dry run: nothing was changed")
        elif not await addon.disable(purge=flags["purge"], wait=None if flags["no_wait"] else flags["timeout"]):
            note("the add-on is not installed: nothing to do")
        return AddonState(enabled=False, version=VERSION, config=AddonConfig() if state is None else state.config)

    state = with_addon(target, work)
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


# --- `confcom addon manifests`: the add-on as YAML --------------------------------------------------------------------


MAX_MACHINE = 16 * 1024
"""Bytes of a machine file."""


@click.command()
@addon_option
@setting_options
@click.option(
    "--simulated-world",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Machine file of the world of --platform simulated, to be written as a Secret.",
)
def manifests(simulated_world: Path | None, **flags: Any) -> None:  # noqa: ANN401 - the settings, by name
    """Write the add-on as YAML, in an order in which it can be applied. Asks no cluster.

    For other tools: `confcom addon manifests | kubectl apply --server-side -f -`. Each output has a new CA of the
    webhook with its key: keep it like a password, and apply it as a whole.
    """
    config = AddonConfig().changed(changes_of(flags))
    ca = next_ca({}, b"", _now()) if config.webhook else None
    objects = render(config, version=VERSION, webhook_ca=ca)
    if config.platform == "simulated":
        if simulated_world is None:
            note(f"not included: Secret {WORLD_SECRET} with the key {WORLD_KEY}; name its content: --simulated-world")
        else:
            from confcom.addon.changes import simulated_objects

            content = read_input(simulated_world, MAX_MACHINE, "machine file")
            objects[2:2] = simulated_objects(_now(), machine_file=content)
    elif simulated_world is not None:
        raise ConfigError("--simulated-world is for --platform simulated")
    click.echo(yaml_documents(objects), nl=False)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read


# --- `confcom addon show`, `list` and `list-available` ----------------------------------------------------------------


DESCRIPTION = "SGX device plugin and admission webhook; with --enable-sgxquotehelper also the SGX quote helper."


@click.command()
@addon_option
@output_option
@target_options
def show(**flags: Any) -> None:  # noqa: ANN401 - the options, by name
    """Show the settings of the enabled add-on, and how many pods of each component serve."""
    found = with_addon(target_of(flags), Addon.show)
    print_result(shown(found), flags["output"])


@click.command("list")
@output_option
@target_options
def list_(**flags: Any) -> None:  # noqa: ANN401 - the options, by name
    """Show which add-ons there are, and whether they are enabled in this cluster."""
    state = with_addon(target_of(flags), Addon.state)
    enabled = state is not None and state.enabled
    print_result([{"name": ADDON, "api_key": API_KEY, "enabled": enabled}], flags["output"])


@click.command("list-available")
@output_option
def list_available(output: str) -> None:
    """Show which add-ons could be enabled. Asks no cluster."""
    print_result([{"name": ADDON, "description": DESCRIPTION}], output)
