"""`confcom demo`: the whole system on this machine, on the simulated platform."""

from __future__ import annotations

from pathlib import Path

import click

from confcom.cli.options import FILE


@click.command()
@click.option(
    "--keep",
    metavar="FOLDER",
    type=FILE,
    help="Leave machine, collateral and quotes in this new folder, for experiments of your own.",
)
def demo(keep: Path | None) -> int:
    """Show the whole system on this machine, on the simulated platform.

    Two enclaves attest each other through the quote helper, without it, and as neighbours; then forgeries are refused.
    Needs no hardware, no network and no privileges, and leaves nothing behind.
    """
    from confcom.cli.demo_acts import play

    return play(keep)
