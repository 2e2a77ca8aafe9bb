"""`confcom addon disable`."""

from __future__ import annotations

import sys
from typing import Any

import click

from confcom.addon.changes import Addon
from confcom.cli.addon_change import DEFAULT_TIMEOUT
from confcom.cli.addon_options import VERSION, addon_option, note, target_of, target_options, with_addon
from confcom.cli.addon_output import output_option, print_result, profile
from confcom.cli.addon_view import show_changes
from confcom.errors import ConfigError
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState

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
