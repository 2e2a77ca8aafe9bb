"""A group of commands that imports each of them when it is called, so that each needs only its own packages."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar

import click

from confcom.errors import ConfigError

CommandTable = Mapping[str, tuple[str, str, str]]
"""Name to module, attribute, and one line of help, which stands here so that `--help` imports no command."""


class LazyGroup(click.Group):
    """Lists and imports the commands of its table; `lazy_group` makes one."""

    table: ClassVar[CommandTable] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute, _ = self.table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])


class AzGroup(LazyGroup):
    """Tells who types the words of `az aks` how the same line is written here."""

    COMMANDS: ClassVar[Mapping[str, str]] = {"enable-addons": "enable", "disable-addons": "disable"}
    """Of `az aks` to `confcom addon`, which take the same options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word; az's is refused with the right line."""
        words = args
        while words[:1] in (["az"], ["aks"]):
            words = words[1:]
        if words and words[0] in self.COMMANDS:
            group = ["addon"] if "addon" in self.table else []
            words = [*group, self.COMMANDS[words[0]], *words[1:]]
        if words is args:
            return super().resolve_command(ctx, args)
        known = bool(words) and words[0] in self.table
        line = shlex.join([*ctx.command_path.split(), *(words if known else ["addon", "--help"])])
        raise ConfigError(f"{args[0]!r} is a word of az, not of confcom", advice=f"Type: {line}")


def lazy_group(table: CommandTable, base: type[LazyGroup] = LazyGroup) -> Any:  # noqa: ANN401 - click's `cls`
    """The class of a group with the commands of this table."""
    return type(base.__name__, (base,), {"table": table})
