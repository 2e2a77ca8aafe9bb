"""`confcom addon show`, `list` and `list-available`."""

from __future__ import annotations

from typing import Any

import click

from confcom.addon.changes import Addon
from confcom.cli.addon_options import addon_option, target_of, target_options, with_addon
from confcom.cli.addon_output import output_option, print_result, shown
from confcom.manifests.addon_state import API_KEY
from confcom.manifests.objects import ADDON

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
