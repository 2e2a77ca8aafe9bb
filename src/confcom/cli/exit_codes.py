"""Exit codes of every command, and the table from the error family to them."""

from __future__ import annotations

from enum import IntEnum

from confcom import errors


class ExitCode(IntEnum):
    """Exit codes of every command. For `verify`, 0 means accepted."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    MALFORMED = 3
    NOT_AUTHENTIC = 4
    REFUSED = 5
    COLLATERAL = 6
    PLATFORM = 7
    INTERRUPTED = 130


# The first class that fits decides, so subclasses stand before what they derive from.
ERROR_EXIT_CODES: tuple[tuple[type[errors.ConfcomError], ExitCode], ...] = (
    (errors.FormatError, ExitCode.MALFORMED),
    (errors.StaleCollateralError, ExitCode.COLLATERAL),
    (errors.VerificationError, ExitCode.NOT_AUTHENTIC),
    (errors.PolicyError, ExitCode.REFUSED),
    (errors.CollateralError, ExitCode.COLLATERAL),
    (errors.PlatformError, ExitCode.PLATFORM),
    (errors.ClusterError, ExitCode.PLATFORM),
    (errors.ProtocolError, ExitCode.PLATFORM),
    (errors.ConfigError, ExitCode.USAGE),
)


def exit_code(error: errors.ConfcomError) -> ExitCode:
    """The exit code of an error: that of the first listed class that it belongs to."""
    for kind, code in ERROR_EXIT_CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.UNEXPECTED
