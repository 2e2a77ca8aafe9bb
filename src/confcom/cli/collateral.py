"""`confcom collateral`: fill, inspect and carry the collateral store. Commands are imported when they are called."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# name → (module, attribute, one line of help). A command whose module is not installed is not listed.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "fetch": ("confcom.cli.collateral_fetch", "fetch", "Get collateral from a service and keep it."),
    "status": ("confcom.cli.collateral_status", "status", "Show what expires, what is missing, who falls behind."),
    "import": ("confcom.cli.collateral_carry", "import_", "Take collateral from a file into the store."),
    "export": ("confcom.cli.collateral_carry", "export", "Write the store's collateral into one file."),
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


class CollateralGroup(click.Group):
    """The commands of the table that are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return [name for name, (module, _, _) in COMMANDS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=CollateralGroup)
def collateral() -> None:
    """Fill, inspect and carry the collateral store: what Intel says about platforms, with its history."""
