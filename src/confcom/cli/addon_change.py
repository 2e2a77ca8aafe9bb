"""`confcom addon enable` and `confcom addon update`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

from confcom.addon.changes import Addon, to_enable, to_update
from confcom.cli.addon_options import VERSION, addon_option, note, target_of, target_options, with_addon
from confcom.cli.addon_output import output_option, print_result, profile
from confcom.cli.addon_settings import changes_of, setting_options
from confcom.cli.addon_view import show_changes
from confcom.manifests import collateral
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState

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
