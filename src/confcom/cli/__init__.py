"""The command line: the only reader of arguments and environment, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""As shells report it; `ExitCode` has it too, which is not imported before it is needed."""


def main() -> None:
    """Entry point of `confcom`."""
    try:
        from confcom.cli.options import check_output
        from confcom.cli.root import run

        check_output()
        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"confcom: the command line needs the package {error.name!r}; the bare package is the library alone.\n"
            "  what to do: install confcom[cli] for the tools, confcom[node] for the daemons.\n"
        )
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("confcom: interrupted\n")
        code = INTERRUPTED
    if code == INTERRUPTED:
        # Where the interrupt passed through `exec`, as at imports, Python would end itself by the signal instead.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
