"""Groups of commands: in their order, imported when they are called, with advice for lines of `az`."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import ClassVar

import click

from confcom.errors import ConfigError

CommandTable = Mapping[str, tuple[str, str, str]]
"""Name to module, attribute, and one line of help, which stands here so that `--help` imports no command."""


class AzGroup(click.Group):
    """Translates lines of `az aks` for the user: refuses them, and advises the same line as it is written here."""

    AZ_COMMANDS: ClassVar[Mapping[str, str]] = {"enable-addons": "enable", "disable-addons": "disable"}
    """Of `az aks` to `confcom addon`, which take the same options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of their declaration."""
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word; a line of az is a `ConfigError` that advises ours."""
        words, names = args, self.list_commands(ctx)
        while words[:1] in (["az"], ["aks"]):
            words = words[1:]
        if words and words[0] in self.AZ_COMMANDS:
            group = ["addon"] if "addon" in names else []
            words = [*group, self.AZ_COMMANDS[words[0]], *words[1:]]
        if words is args:
            return super().resolve_command(ctx, args)
        known = bool(words) and words[0] in names
        line = shlex.join([*ctx.command_path.split(), *(words if known else ["addon", "--help"])])
        raise ConfigError(f"{args[0]!r} is a word of az, not of confcom", advice=f"Type: {line}")


class LazyGroup(AzGroup):
    """Imports each command of its table when it is called."""

    table: ClassVar[CommandTable]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])
