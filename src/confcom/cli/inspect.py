"""`confcom inspect`: what a file is, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from confcom.appraisal.inspection.explain import MAX_INSPECTED
from confcom.appraisal.inspection.explain import inspect as inspect_bytes
from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.inputs import read_input
from confcom.cli.printable import printable
from confcom.errors import ConfcomError, FormatError


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: kind and fields.")
def inspect(file: Path, as_json: bool) -> int:
    """Decode FILE and explain it: quote, report, certificate, revocation list, collateral, AESM frame, token.

    Nothing is verified. Binary, hexadecimal, base64, PEM and JSON are recognised. '-' reads standard input.
    """
    data = read_input(file, MAX_INSPECTED, "input")
    try:
        found = inspect_bytes(data)
    except ConfcomError as error:
        if as_json:
            _print_json({"kind": None, "verified": False, "fields": {}, "error": error.as_dict()})
        else:
            _complain(error)
        return exit_code(error)
    if as_json:
        _print_json(found.as_dict())
    else:
        from confcom.cli.inspection_view import show

        show(found)
    return ExitCode.OK


def _print_json(document: dict[str, Any]) -> None:
    # JSON escapes every control character but this one.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def _complain(error: ConfcomError) -> None:
    message = str(error).removeprefix("input: ") if isinstance(error, FormatError) else str(error)
    click.echo(f"confcom: {printable(message)}", err=True)
    click.echo(f"  what to do: {printable(error.advice())}", err=True)
