"""`confcom addon manifests`: the add-on as YAML."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from confcom.addon.changes import next_ca
from confcom.cli.addon_options import VERSION, addon_option, note
from confcom.cli.addon_output import yaml_documents
from confcom.cli.addon_settings import changes_of, setting_options
from confcom.cli.inputs import read_input
from confcom.errors import ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET

MAX_MACHINE = 16 * 1024
"""Bytes of a machine file."""


@click.command()
@addon_option
@setting_options
@click.option(
    "--simulated-world",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Machine file of the world of --platform simulated, to be written as a Secret.",
)
def manifests(simulated_world: Path | None, **flags: Any) -> None:  # noqa: ANN401 - the settings, by name
    """Write the add-on as YAML, in an order in which it can be applied. Asks no cluster.

    For other tools: `confcom addon manifests | kubectl apply --server-side -f -`. Each output has a new CA of the
    webhook with its key: keep it like a password, and apply it as a whole.
    """
    config = AddonConfig().changed(changes_of(flags))
    ca = next_ca({}, b"", _now()) if config.webhook else None
    objects = render(config, version=VERSION, webhook_ca=ca)
    if config.platform == "simulated":
        if simulated_world is None:
            note(f"not included: Secret {WORLD_SECRET} with the key {WORLD_KEY}; name its content: --simulated-world")
        else:
            from confcom.addon.changes import simulated_objects

            content = read_input(simulated_world, MAX_MACHINE, "machine file")
            objects[2:2] = simulated_objects(_now(), machine_file=content)
    elif simulated_world is not None:
        raise ConfigError("--simulated-world is for --platform simulated")
    click.echo(yaml_documents(objects), nl=False)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read
