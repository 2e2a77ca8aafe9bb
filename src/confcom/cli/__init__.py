"""The command line: the only reader of arguments and environment, and the one place where errors become exit codes."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `confcom`."""
    try:
        from confcom.cli.root import run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"confcom: the command line needs the package {error.name!r}; the bare package is the library alone.\n"
            "  what to do: install confcom[cli] for the tools, confcom[node] for the daemons.\n"
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
