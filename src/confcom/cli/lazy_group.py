"""A group of commands that imports each of them when it is called, so that each needs only its own packages."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import click

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


def lazy_group(table: CommandTable, base: type[LazyGroup] = LazyGroup) -> Any:  # noqa: ANN401 - click's `cls`
    """The class of a group with the commands of this table."""
    return type(base.__name__, (base,), {"table": table})
