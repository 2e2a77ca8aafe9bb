"""Completions and man pages of `confcom`, laid out as below `/usr/share`; needs requirements/release.txt.

Arguments: the folder, the version, the date in seconds.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import generate_man_page

from confcom.cli.root import root

PLACES = {
    "bash": "bash-completion/completions/confcom",
    "zsh": "zsh/site-functions/_confcom",
    "fish": "fish/vendor_completions.d/confcom.fish",
}


def main(arguments: list[str]) -> int:
    folder, version, seconds = Path(arguments[0]), arguments[1], int(arguments[2])
    for shell, place in PLACES.items():
        kind = get_completion_class(shell)
        if kind is None:
            raise SystemExit(f"shell_files: click completes nothing for {shell}")
        # Its template alone: `source()` would ask the shell of this machine for its version.
        completion = kind(root, {}, "confcom", "_CONFCOM_COMPLETE")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(completion.source_template % completion.source_vars())
    pages = folder / "man" / "man1"
    pages.mkdir(parents=True)
    date = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
    for context in contexts(click.Context(root, info_name="confcom")):
        name = context.command_path.replace(" ", "-")
        # An ellipsis is no character of plain troff.
        text = generate_man_page(context, version, date).replace("…", "...")
        (pages / f"{name}.1").write_text(text)
    return 0


def contexts(context: click.Context) -> list[click.Context]:
    """A context for a command and for all below it; click-man itself finds only commands that are imported."""
    group = context.command
    group.short_help = group.get_short_help_str(500)
    below: list[click.Context] = []
    if not isinstance(group, click.Group):
        return [context]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            group.commands[name] = command
            below += contexts(click.Context(command, info_name=name, parent=context))
    return [context, *below]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
