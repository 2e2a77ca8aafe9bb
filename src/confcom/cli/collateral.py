"""`confcom collateral`: fill, inspect and carry the collateral store. Commands are imported when they are called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from confcom.cli.lazy_group import CommandTable, LazyGroup, lazy_group

# A command whose module is not installed is not listed.
COMMANDS: CommandTable = {
    "fetch": ("confcom.cli.collateral_fetch", "fetch", "Get collateral from a service and keep it."),
    "status": ("confcom.cli.collateral_fetch", "status", "Show what expires, what is missing, who falls behind."),
    "import": ("confcom.cli.collateral_fetch", "import_", "Take collateral from a file into the store."),
    "export": ("confcom.cli.collateral_fetch", "export", "Write the store's collateral into one file."),
    "remove": ("confcom.cli.collateral_fetch", "remove", "Remove platforms that are gone."),
    "serve": ("confcom.cli.collateral_serve", "serve", "Serve collateral to every node (PCCS-compatible)."),
}

STORE_VARIABLE = "CONFCOM_COLLATERAL_STORE"


def default_store() -> Path:
    """Where the store of a person is, if nothing else is named."""
    return Path.home() / ".local" / "share" / "confcom" / "collateral.sqlite"


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--store PATH`."""
    return click.option(
        "--store",
        metavar="PATH",
        type=click.Path(path_type=Path),
        default=default_store,
        envvar=STORE_VARIABLE,
        help=f"The collateral store. Default: ${STORE_VARIABLE}, else ~/.local/share/confcom/collateral.sqlite.",
    )(command)


def trust_root_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--trust-root PEM`."""
    return click.option(
        "--trust-root",
        metavar="PEM",
        multiple=True,
        help="Trust this root instead of Intel's (a simulated platform). Repeatable; the word 'intel' adds Intel's.",
    )(command)


class InstalledGroup(LazyGroup):
    """The commands of the table that are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return [name for name in super().list_commands(ctx) if importlib.util.find_spec(self.table[name][0])]


@click.group(cls=lazy_group(COMMANDS, InstalledGroup))
def collateral() -> None:
    """Fill, inspect and carry the collateral store: what Intel says about platforms, with its history."""
