"""Files and streams that a person names for output."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from confcom.errors import ConfigError

WIDTH = 76
"""Characters per line of base64 on a terminal."""


def write_output(path: Path | None, data: bytes, what: str) -> None:
    """Write to a file; without one (or for `-`) to standard output, as base64 when that is a terminal."""
    if path is not None and str(path) != "-":
        write_file(path, data, what)
    elif path is None and sys.stdout.isatty():
        text = base64.b64encode(data).decode()
        for start in range(0, len(text), WIDTH):
            click.echo(text[start : start + WIDTH])
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def write_file(path: Path, data: bytes, what: str, *, exclusive: bool = False) -> None:
    """Write a file; with `exclusive`, one that is there already is left alone with a `ConfigError`."""
    try:
        with path.open("xb" if exclusive else "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", advice="Name another file, or remove it first.") from error
    except OSError as error:
        raise ConfigError(f"cannot write the {what} to {path}: {error.strerror}", advice="Check the path.") from error
