"""What commands print and the files that they write."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import click

from confcom.errors import ConfcomError, ConfigError

WIDTH = 76
"""Characters per line of base64 on a terminal."""


def printable(text: object) -> str:
    """The text with every character that could control a terminal written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def complain(message: object, advice: str = "") -> None:
    """A message and its advice on standard error; of an error, its own advice."""
    if isinstance(message, ConfcomError):
        advice = advice or message.advice()
    click.echo(f"confcom: {printable(message)}", err=True)
    if advice:
        click.echo(f"  what to do: {printable(advice)}", err=True)


def print_json(document: Any) -> None:  # noqa: ANN401 - JSON
    """Print a document as indented JSON."""
    # JSON escapes every control character but this one.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


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
    """Write a file; with `exclusive`, an existing one is a `ConfigError` and stays."""
    try:
        with path.open("xb" if exclusive else "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", advice="Name another file, or remove it first.") from error
    except OSError as error:
        raise ConfigError(f"cannot write the {what} to {path}: {error.strerror}", advice="Check the path.") from error
